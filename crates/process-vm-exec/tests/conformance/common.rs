//! What all claims share: guests made of a few instructions, a watchdog, and a source of numbers.

use std::{
    env,
    process::{self, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use iced_x86::{
    IcedError,
    code_asm::{CodeAssembler, eax},
};
use process_vm_exec::{
    AddressSpace, AddressSpaceBuilder, Context, Engine, Exit, Fault, Mapping, Protection, Registers,
    Rewriting, SignalSet, Syscall,
};
use raw_cpuid::{CpuId, Hypervisor};

use crate::planned::{Sites, is_planned};

pub(crate) const PAGE: u64 = 4096;
/// Guest code: 16 pages, read and execute.
pub(crate) const CODE: u64 = 0x10_0000;
pub(crate) const CODE_LEN: u64 = 16 * PAGE;
/// Guest data: 16 pages, read and write.
pub(crate) const DATA: u64 = 0x20_0000;
pub(crate) const DATA_LEN: u64 = 16 * PAGE;
/// Guest stacks: 64 pages, read and write.
pub(crate) const STACK: u64 = 0x30_0000;
pub(crate) const STACK_LEN: u64 = 64 * PAGE;
pub(crate) const STACK_TOP: u64 = STACK + STACK_LEN;
/// Nothing is ever mapped here.
pub(crate) const UNMAPPED: u64 = 0x4000_0000;

pub(crate) const READ: Protection = Protection::READ;
pub(crate) const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
pub(crate) const READ_EXEC: Protection = Protection::READ.union(Protection::EXEC);

/// A number that no system call of Linux has.
pub(crate) const NR: u32 = 7777;

/// The time after which a claim counts as hung.
const WATCHDOG: Duration = Duration::from_secs(240);
/// Set in a process that runs one claim alone; see [`alone`].
pub(crate) const ALONE: &str = "PVX_CONFORMANCE_ALONE";

/// Defines claims: functions of an engine, each of which becomes one test per engine; after `planned;` one more, with
/// plans that the supervisor applies itself.
macro_rules! claims {
    (planned; $($(#[$meta:meta])* fn $name:ident($engine:ident) $body:block)+) => {
        crate::common::claims! { $($(#[$meta])* fn $name($engine) $body)+ }
        crate::planned::planned! { $($name),+ }
    };
    ($($(#[$meta:meta])* fn $name:ident($engine:ident) $body:block)+) => {
        $($(#[$meta])* fn $name($engine: process_vm_exec::Engine) $body)+

        mod ptrace {
            $(#[test] fn $name() {
                crate::common::check(process_vm_exec::Engine::Ptrace, stringify!($name), super::$name);
            })+
        }
        mod trap {
            $(#[test] fn $name() {
                crate::common::check(process_vm_exec::Engine::Trap, stringify!($name), super::$name);
            })+
        }
        mod rewrite {
            $(#[test] fn $name() {
                crate::common::check(process_vm_exec::Engine::Rewrite, stringify!($name), super::$name);
            })+
        }
        mod native {
            $(#[test] fn $name() {
                crate::common::check(process_vm_exec::Engine::Native, stringify!($name), super::$name);
            })+
        }
    };
}
pub(crate) use claims;

/// Runs a claim with `engine`, watched, if the engine works here.
pub(crate) fn check(engine: Engine, claim: &'static str, body: fn(Engine)) {
    let detection = Engine::detect().expect("some engine works");
    let lack = detection.engines.into_iter().find(|&(known, _)| known == engine).and_then(|(_, lack)| lack);
    if let Some(lack) = lack {
        skip(&format!("claims about {engine}, which does not work here: {lack}"));
        return;
    }
    let (_done, watched) = mpsc::channel::<()>();
    thread::spawn(move || {
        if watched.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("HUNG: {claim} with {engine}: not done after {} s", WATCHDOG.as_secs());
            process::abort();
        }
    });
    body(engine);
}

/// Says that something is not tested on this machine.
pub(crate) fn skip(why: &str) {
    eprintln!("SKIP: {why}");
}

/// Does QEMU's emulator stand for a processor? It does not raise all exceptions that one raises.
pub(crate) fn is_emulated() -> bool {
    let hypervisor = CpuId::new().get_hypervisor_info();
    hypervisor.is_some_and(|hypervisor| hypervisor.identify() == Hypervisor::QEMU)
}

/// Runs `body` in a process of its own, which runs nothing but this claim: for claims about the whole process.
pub(crate) fn alone(engine: Engine, module: &str, claim: &str, body: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        return body();
    }
    assert_eq!(passed(this_claim(engine, module, claim).env(ALONE, "1")), 1, "in a process of its own");
}

/// Runs tests of this very program, and returns how many there were: all have passed.
#[track_caller]
pub(crate) fn passed(command: &mut Command) -> usize {
    let output = command.stderr(Stdio::inherit()).output().expect("the test runs itself");
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(output.status.success(), "{command:?}: {}", output.status);
    let passed = said.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split_once(" passed"));
    passed.and_then(|(count, _)| count.parse().ok()).expect("a result of the test harness")
}

/// The command that runs one claim of this very program, and no other.
pub(crate) fn this_claim(engine: Engine, module: &str, claim: &str) -> Command {
    let subject = module.split("::").last().expect("a module");
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", &format!("{subject}::{engine}::{claim}"), "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null());
    command
}

/// How long storms last.
pub(crate) fn soak() -> Duration {
    let seconds = env::var("PVX_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// `top: jmp top`
pub(crate) fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.jmp(top)
}

/// `top: mov $NR,%eax; syscall; jmp top`
pub(crate) fn call_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.jmp(top)
}

/// Assembles guest code for [`CODE`].
pub(crate) fn asm(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    asm_at(CODE, build)
}

/// Assembles guest code for `addr`.
pub(crate) fn asm_at(addr: u64, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    build(&mut assembler).expect("instructions that exist");
    assembler.assemble(addr).expect("guest code")
}

/// A space with code, data and stacks mapped.
pub(crate) fn space(engine: Engine, code: &[u8]) -> AddressSpace {
    space_with(AddressSpace::builder().engine(engine), code)
}

/// The same, with options.
pub(crate) fn space_with(builder: AddressSpaceBuilder, code: &[u8]) -> AddressSpace {
    let space = builder.create().expect("an address space");
    map_memory(&space);
    space.map(Mapping::anonymous(CODE_LEN, READ_WRITE).at(CODE)).expect("room for code");
    space.write(CODE, code).expect("code is written");
    space.protect(CODE, CODE_LEN, READ_EXEC).expect("code is protected");
    space
}

fn map_memory(space: &AddressSpace) {
    space.map(Mapping::anonymous(DATA_LEN, READ_WRITE).at(DATA)).expect("room for data");
    space.map(Mapping::anonymous(STACK_LEN, READ_WRITE).at(STACK)).expect("room for stacks");
}

/// An address space and one flow of control in it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) ctx: Context,
    /// Those that are rewritten by plans, in claims about that.
    pub(crate) sites: Option<Arc<Sites>>,
}

impl Guest {
    /// One that starts at the first of these instructions.
    pub(crate) fn new(
        engine: Engine,
        build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        Self::with_code(engine, &asm(build))
    }

    pub(crate) fn with_code(engine: Engine, code: &[u8]) -> Self {
        if !is_planned() || engine != Engine::Rewrite {
            return Self::in_space(space(engine, code));
        }
        let builder = AddressSpace::builder().engine(engine).rewriting(Rewriting::Planned);
        let space = builder.create().expect("an address space");
        map_memory(&space);
        let sites = Some(Sites::with_text(&space, code));
        Self { sites, ..Self::in_space(space) }
    }

    pub(crate) fn in_space(space: impl Into<Arc<AddressSpace>>) -> Self {
        Self { space: space.into(), ctx: Context::new(CODE, STACK_TOP), sites: None }
    }

    /// Another flow of control in the same space, with a stack of its own.
    pub(crate) fn another(&self, number: u64) -> Self {
        let stack_top = STACK_TOP - number * PAGE;
        assert!(stack_top > STACK);
        self.with_context(Context::new(CODE, stack_top))
    }

    pub(crate) fn with_context(&self, ctx: Context) -> Self {
        Self { space: Arc::clone(&self.space), ctx, sites: self.sites.clone() }
    }

    pub(crate) fn regs(&mut self) -> &mut Registers {
        self.ctx.registers_mut()
    }

    pub(crate) fn run(&mut self) -> Exit {
        self.run_with(&SignalSet::all()).expect("the guest runs")
    }

    pub(crate) fn run_with(&mut self, signals: &SignalSet) -> process_vm_exec::Result<Exit> {
        match &self.sites {
            Some(sites) => sites.run(&self.space, &mut self.ctx, signals),
            None => self.space.run(&mut self.ctx, signals),
        }
    }

    /// How many of its sites are rewritten now.
    pub(crate) fn rewritten_sites(&self) -> usize {
        self.sites.as_ref().map_or_else(|| self.space.rewritten_sites(), |sites| sites.count())
    }

    /// Its text is about to be changed.
    pub(crate) fn text_changes(&self) {
        if let Some(sites) = &self.sites {
            sites.stop(&self.space);
        }
    }

    /// Runs to a system call.
    #[track_caller]
    pub(crate) fn call(&mut self) -> Syscall {
        match self.run() {
            Exit::Syscall => *self.ctx.syscall(),
            other => panic!("a system call was expected, not {other:?} at {:#x}", self.ctx.registers().rip),
        }
    }

    /// Runs to a fault.
    #[track_caller]
    pub(crate) fn fault(&mut self) -> Fault {
        match self.run() {
            Exit::Fault(fault) => fault,
            other => panic!("a fault was expected, not {other:?} at {:#x}", self.ctx.registers().rip),
        }
    }

    /// Runs to an interrupt.
    #[track_caller]
    pub(crate) fn interrupted(&mut self) {
        match self.run() {
            Exit::Interrupted => {}
            other => panic!("an interrupt was expected, not {other:?} at {:#x}", self.ctx.registers().rip),
        }
    }

    /// Runs it for `time` and no longer; it has to do nothing but spin.
    #[track_caller]
    pub(crate) fn spin_for(&mut self, time: Duration) {
        let interrupter = self.ctx.interrupter();
        let timer = thread::spawn(move || {
            thread::sleep(time);
            interrupter.interrupt();
        });
        self.interrupted();
        timer.join().expect("the timer");
    }

    /// Eight bytes of its memory.
    #[track_caller]
    pub(crate) fn peek(&self, addr: u64) -> u64 {
        let mut bytes = [0; 8];
        self.space.read(addr, &mut bytes).expect("readable memory");
        u64::from_ne_bytes(bytes)
    }

    #[track_caller]
    pub(crate) fn poke(&self, addr: u64, value: u64) {
        self.space.write(addr, &value.to_ne_bytes()).expect("writable memory");
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}

/// Fills every general register but RSP with another number; RIP, RFLAGS and segments stay.
pub(crate) fn fill(regs: &mut Registers, numbers: &mut Numbers) {
    for reg in [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rbp,
        &mut regs.r8,
        &mut regs.r9,
        &mut regs.r10,
        &mut regs.r11,
        &mut regs.r12,
        &mut regs.r13,
        &mut regs.r14,
        &mut regs.r15,
    ] {
        *reg = numbers.next();
    }
}

/// Sends `signal` to the process `pid`, as kill(2) does.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes two integers and touches no memory of this process.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "kill({pid}, {signal}): {}", std::io::Error::last_os_error());
}

/// The number of a space's process.
#[track_caller]
pub(crate) fn pid_of(space: &AddressSpace) -> i32 {
    space.pid().expect("a live space").as_raw_pid()
}
