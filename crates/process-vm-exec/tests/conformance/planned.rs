//! A second application of plans: text and stubs are files that the supervisor writes to, mapped shared.

use std::{
    cell::Cell,
    collections::HashMap,
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{Arc, Mutex, PoisonError},
};

use process_vm_exec::{
    AddressSpace, Calls, Context, DEFAULT_REGION, Engine, Exit, Mapping, Registers, Result, SignalSet, Sysno,
    rewriting::{Breakpoint, Change, Forms, Planner, STUBS_LEN, Text, Unplanned, WINDOW},
};
use rustix::fs::MemfdFlags;

use crate::common::{CODE, CODE_LEN, READ_EXEC, check};

thread_local! {
    /// Are the sites of this claim's guests rewritten by plans?
    static PLANNED: Cell<bool> = const { Cell::new(false) };
}

/// One more variant of claims: with `rewrite`, whose sites the supervisor rewrites itself.
macro_rules! planned {
    ($($name:ident),+ $(,)?) => {
        mod planned {
            $(#[test] fn $name() {
                crate::planned::check_planned(stringify!($name), super::$name);
            })+
        }
    };
}
pub(crate) use planned;

pub(crate) fn check_planned(claim: &'static str, body: fn(Engine)) {
    PLANNED.set(true);
    check(Engine::Rewrite, claim, body);
}

/// Does this thread make guests whose sites are rewritten by plans?
pub(crate) fn is_planned() -> bool {
    PLANNED.get()
}

/// The sites of one space.
#[derive(Debug)]
pub(crate) struct Sites(Mutex<State>);

#[derive(Debug)]
struct State {
    planner: Planner,
    /// What is mapped where: the text, and pages of stubs.
    files: Vec<(u64, File)>,
    traps: HashMap<u64, u32>,
    /// The guest uses GS, is stepped through, or is about to change its text.
    off: bool,
}

/// A file of memory.
fn memory(len: u64) -> File {
    let fd = rustix::fs::memfd_create("conformance-text", MemfdFlags::CLOEXEC).expect("a memory file");
    rustix::fs::ftruncate(&fd, len).expect("room in it");
    fd.into()
}

impl Sites {
    /// Maps `code`, whose sites these are.
    pub(crate) fn with_text(space: &AddressSpace, code: &[u8]) -> Arc<Self> {
        let text = memory(CODE_LEN);
        text.write_all_at(code, 0).expect("code is written");
        space
            .map(Mapping::file(text.as_fd(), 0, CODE_LEN, READ_EXEC).shared().at(CODE))
            .expect("code is mapped");
        let planner = Planner::new(DEFAULT_REGION.start).expect("the default region");
        let state = State { planner, files: vec![(CODE, text)], traps: HashMap::new(), off: false };
        Arc::new(Self(Mutex::new(state)))
    }

    /// The guest's text is to be its own from now on: it is about to be changed.
    pub(crate) fn stop(&self, space: &AddressSpace) {
        self.state(|state| state.stop(space));
    }

    /// How many are rewritten.
    pub(crate) fn count(&self) -> usize {
        self.state(|state| state.planner.plans().count())
    }

    /// As [`run`](process_vm_exec::Space::run), to a guest that does not see that sites are rewritten.
    pub(crate) fn run(&self, space: &AddressSpace, ctx: &mut Context, signals: &SignalSet) -> Result<Exit> {
        loop {
            self.state(|state| state.before_run(space, ctx));
            let Calls { trapped, .. } = ctx.calls();
            let exit = space.run(ctx, signals)?;
            let has_trapped = ctx.calls().trapped != trapped;
            if let Some(exit) = self.state(|state| state.after_run(space, ctx, exit, has_trapped)) {
                return Ok(exit);
            }
        }
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn before_run(&mut self, space: &AddressSpace, ctx: &mut Context) {
        self.look_at(space, *ctx.registers());
        let rip = ctx.registers().rip;
        let present = self.planner.present(rip);
        if present != rip {
            ctx.registers_mut().rip = present;
        }
    }

    /// `None`: the guest goes on, as nothing has happened that it would know of.
    fn after_run(
        &mut self,
        space: &AddressSpace,
        ctx: &mut Context,
        mut exit: Exit,
        has_trapped: bool,
    ) -> Option<Exit> {
        const DEBUG: u32 = 1;
        const BREAKPOINT: u32 = 3;
        const PAGE_FAULT: u32 = 14;
        let registers = self.planner.original(*ctx.registers());
        if registers != *ctx.registers() {
            *ctx.registers_mut() = registers;
        }
        self.look_at(space, registers);
        match &mut exit {
            Exit::Syscall if has_trapped => self.after_trap(space, &registers),
            Exit::Fault(fault) if fault.trapno == DEBUG => self.stop(space),
            Exit::Fault(fault) if fault.trapno == BREAKPOINT && self.is_ours(registers.rip) => {
                ctx.registers_mut().rip = registers.rip - 1;
                return None;
            }
            Exit::Fault(fault) if fault.trapno != PAGE_FAULT => {
                fault.addr = self.planner.original_address(fault.addr);
            }
            _ => {}
        }
        Some(exit)
    }

    fn look_at(&mut self, space: &AddressSpace, registers: Registers) {
        const TRAP_FLAG: u64 = 1 << 8;
        if registers.gs_base != 0 || registers.rflags & TRAP_FLAG != 0 {
            self.stop(space);
        }
    }

    /// Is the breakpoint before `rip` one that the guest does not know of?
    fn is_ours(&self, rip: u64) -> bool {
        match self.planner.breakpoint(rip) {
            Breakpoint::Planned { .. } => true,
            Breakpoint::Guests => false,
            Breakpoint::Unknown => {
                let mut byte = [0];
                let is_read = self
                    .file_of(rip - 1)
                    .is_some_and(|(offset, file)| file.read_exact_at(&mut byte, offset).is_ok());
                is_read && byte != [0xcc] && byte != [3]
            }
        }
    }

    fn after_trap(&mut self, space: &AddressSpace, registers: &Registers) {
        let traps = self.traps.entry(registers.rip).or_default();
        *traps += 1;
        let forms = match *traps {
            2 => Forms::All,
            20 => Forms::Behind,
            _ => return,
        };
        self.take_back(space, registers.rip);
        if !self.off && registers.rip > WINDOW && self.file_of(registers.rip - 2).is_some() {
            self.rewrite(space, registers, forms);
        }
    }

    fn rewrite(&mut self, space: &AddressSpace, registers: &Registers, forms: Forms) {
        let start = (registers.rip - WINDOW).max(CODE);
        let end = (registers.rip + WINDOW).min(CODE + CODE_LEN);
        let Some((offset, file)) = self.file_of(start) else { return };
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).expect("a length")];
        file.read_exact_at(&mut bytes, offset).expect("text");
        let text = Text::new(start, &bytes);
        let plan = match self.planner.plan(text, registers, forms) {
            Err(Unplanned::NoStubs(places)) => {
                let Some(place) = places.near(CODE).find(|&place| is_free(place)) else { return };
                if self.map_stubs(space, place).is_err() {
                    // It is dead.
                    return;
                }
                self.planner.plan(text, registers, forms)
            }
            plan => plan,
        };
        let Ok(plan) = plan else { return };
        let stub = plan.stub();
        self.write(stub.at, &stub.bytes);
        self.change(space, plan.change());
        self.planner.commit(plan);
    }

    fn map_stubs(&mut self, space: &AddressSpace, place: u64) -> Result<()> {
        let file = memory(STUBS_LEN);
        space.map(Mapping::file(file.as_fd(), 0, STUBS_LEN, READ_EXEC).shared().at(place))?;
        file.write_all_at(&self.planner.add_stubs(place).expect("one of the places"), 0).expect("memory");
        self.files.push((place, file));
        Ok(())
    }

    fn take_back(&mut self, space: &AddressSpace, site: u64) {
        for plan in self.planner.take_back(|plan| plan.site() == site) {
            self.change(space, plan.undo());
        }
    }

    fn stop(&mut self, space: &AddressSpace) {
        self.off = true;
        space.stop_plans();
        for plan in self.planner.take_back(|_| true) {
            self.change(space, plan.undo());
        }
    }

    fn change(&self, space: &AddressSpace, change: Change<'_>) {
        const PRIVATE_EXPEDITED_SYNC_CORE: u64 = 1 << 5;
        for writes in change.steps() {
            for write in writes {
                self.write(write.at, &write.bytes);
            }
            // It may be dead.
            let _ = space.syscall(Sysno::membarrier, [PRIVATE_EXPEDITED_SYNC_CORE, 0, 0, 0, 0, 0]);
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let (offset, file) = self.file_of(at).expect("text or stubs");
        file.write_all_at(bytes, offset).expect("memory");
    }

    /// The file that is mapped at `addr`, and the offset in it.
    fn file_of(&self, addr: u64) -> Option<(u64, &File)> {
        self.files.iter().find_map(|(start, file)| {
            let offset = addr.checked_sub(*start)?;
            let len = if *start == CODE { CODE_LEN } else { STUBS_LEN };
            (offset < len).then_some((offset, file))
        })
    }
}

/// Have claims nothing there? They map what they need between the code and this, and the kernel what it places itself far above.
fn is_free(place: u64) -> bool {
    const HIGHEST_OF_CLAIMS: u64 = 0x5000_0000;
    place > HIGHEST_OF_CLAIMS
}
