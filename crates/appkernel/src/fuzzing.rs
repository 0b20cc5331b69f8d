//! What the fuzz targets (`fuzz/` in the repository) reach of the insides of this crate.

use process_vm_exec::{SigInfo, Syscall};

use crate::{Config, Program, Task, dispatch, guest::GuestMemory, task::Next};

/// A task that returns from signal handlers by frames that are made up.
#[derive(Debug)]
pub struct Frames {
    task: Task,
    /// Where frames are put: within the task's stack.
    stack: u64,
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

impl Frames {
    /// How much of a frame may be made up: the frame itself and extended state behind it.
    const LEN: u64 = 4096;

    /// # Panics
    /// If `/bin/true` cannot be loaded.
    pub fn new() -> Self {
        let program = Program::open(c"/bin/true", vec![c"true".to_owned()], Vec::new()).expect("a program");
        let task = Task::start(program, Config::default()).expect("a task");
        let stack = task.context.registers().rsp - 4 * Self::LEN;
        let mut frames = Self { task, stack };
        // A handler for every signal, on the alternate stack if there is one.
        let action =
            [0x40_0000u64, (libc::SA_SIGINFO | libc::SA_ONSTACK).cast_unsigned().into(), 0x40_0000, 0];
        for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
            let bytes: Vec<u8> = action.into_iter().flat_map(u64::to_ne_bytes).collect();
            frames.task.space.store(stack, &bytes).expect("the stack");
            frames.call(libc::SYS_rt_sigaction, [signal.cast_unsigned().into(), stack, 0, 8, 0, 0]);
        }
        frames
    }

    /// Returns from a handler whose frame begins with `bytes`, where the pointer to the extended state leads to the
    /// byte `fpstate` of them; then a signal is delivered.
    pub fn return_by(&mut self, bytes: &[u8], fpstate: u16) {
        const FPSTATE: usize = 8 + 40 + 184;
        let mut frame = vec![0; Self::LEN as usize];
        let len = bytes.len().min(frame.len());
        frame[..len].copy_from_slice(&bytes[..len]);
        if fpstate != 0 {
            let addr = self.stack + u64::from(fpstate) % Self::LEN;
            frame[FPSTATE..FPSTATE + 8].copy_from_slice(&addr.to_ne_bytes());
        }
        self.task.space.store(self.stack, &frame).expect("the stack");
        self.task.context.registers_mut().rsp = self.stack + 8;
        self.task.next = Next::Continue;
        self.call(libc::SYS_rt_sigreturn, [0; 6]);
        if self.task.next == Next::Jump {
            let mut info = [0; 128];
            info[..4].copy_from_slice(&libc::SIGUSR1.to_ne_bytes());
            self.task.signals.post(SigInfo::from_bytes(info));
            self.task.deliver_signals();
        }
    }

    fn call(&mut self, nr: libc::c_long, args: [u64; 6]) {
        let call = Syscall { nr: nr.cast_unsigned(), args, arch: process_vm_exec::Arch::X86_64 };
        let handler = dispatch::handler(call.nr).expect("a call that there is");
        let _ = handler(&mut self.task, call.args);
    }
}
