//! Makes a system call in a live process over and over, and says what that costs: `attach PID`.

use std::time::Instant;

use process_vm_exec::{Call, LiveProcess, Sysno};

fn main() -> process_vm_exec::Result<()> {
    let Some(pid) = std::env::args().nth(1).and_then(|pid| pid.parse().ok()) else {
        eprintln!("usage: attach PID");
        std::process::exit(2);
    };
    let start = Instant::now();
    let process = LiveProcess::attach_pid(pid)?;
    println!("attached to {pid} in {:?}", start.elapsed());

    const CALLS: u32 = 100_000;
    let start = Instant::now();
    for _ in 0..CALLS {
        process.syscall(&Call::new(Sysno::getppid))?;
    }
    println!("one system call there: {:?}", start.elapsed() / CALLS);
    process.detach()
}
