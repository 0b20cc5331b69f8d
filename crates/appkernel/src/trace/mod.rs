//! System calls in the words of strace(1), one line each.

mod args;

use std::{fmt, io::Write};

use process_vm_exec::{Arch, SigInfo, Syscall, WaitStatus};

use crate::{
    abi::{Answer, size},
    calls,
    program::Program,
    stats,
    task::{Next, Task},
};

/// Where the lines go.
pub struct Tracer {
    out: Box<dyn Write + Send>,
    /// The line being written.
    line: String,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

impl Tracer {
    /// A tracer that writes to `out`, one line at a time. Where that fails, the trace has a gap; the program
    /// goes on.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { out: Box::new(out), line: String::new() }
    }

    /// What started the program: a call that nobody has made here.
    pub(crate) fn start(&mut self, program: &Program, environment: u64) {
        let path = program.execfn.escape_ascii();
        let args = args::list(&program.asked);
        let variables = args::variables(environment, program.env.len());
        self.write(&format!("execve(\"{path}\", {args}, {variables}) = 0"));
    }

    pub(crate) fn signal(&mut self, info: &SigInfo) {
        let name = calls::signal_name(info.signal());
        self.write(&format!("--- {name} {{si_code={}, si_addr={:#x}}} ---", info.code(), info.addr()));
    }

    pub(crate) fn end(&mut self, status: WaitStatus) {
        let line = match status {
            WaitStatus::Exited(status) => format!("+++ exited with {status} +++"),
            WaitStatus::Signaled(signal) => format!("+++ killed by {} +++", calls::signal_name(signal)),
        };
        self.write(&line);
    }

    fn write(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }
}

impl Task {
    /// Decodes what the guest passes in, before the call changes it.
    pub(crate) fn trace_entry(&mut self, call: &Syscall) {
        let mut line = self.take_line();
        line.clear();
        match call.arch {
            Arch::X86_64 => {
                line.push_str(&stats::name(size(call.nr)));
                line.push('(');
                args::describe(&self.space, call, args::When::Before, &mut line);
            }
            Arch::I386 => line.push_str(&format!("int80_{}(", call.nr)),
        }
        self.put_line(line);
    }

    /// Decodes what the call has put into the guest's memory, and its result.
    pub(crate) fn trace_exit(&mut self, call: &Syscall, answer: Answer) {
        let mut line = self.take_line();
        if call.arch == Arch::X86_64 {
            args::describe(&self.space, call, args::When::After(answer), &mut line);
        }
        line.push_str(") = ");
        match (self.next, answer) {
            (Next::End(_), _) => line.push('?'),
            (_, Ok(value)) => args::describe_result(call, value, &mut line),
            (_, Err(errno)) => line.push_str(&calls::error(errno)),
        }
        if let Some(tracer) = &mut self.config.tracer {
            tracer.write(&line);
        }
        self.put_line(line);
    }

    fn take_line(&mut self) -> String {
        self.config.tracer.as_mut().map(|tracer| std::mem::take(&mut tracer.line)).unwrap_or_default()
    }

    fn put_line(&mut self, line: String) {
        if let Some(tracer) = &mut self.config.tracer {
            tracer.line = line;
        }
    }
}
