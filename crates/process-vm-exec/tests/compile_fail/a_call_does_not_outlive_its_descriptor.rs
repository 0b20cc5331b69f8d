use std::fs::File;
use std::os::fd::AsFd;

use process_vm_exec::{Call, LiveProcess, Result, Sysno};

fn sync(process: &LiveProcess, file: File) -> Result<u64> {
    let call = Call::new(Sysno::fsync).fd(0, file.as_fd());
    drop(file);
    Ok(process.syscall(&call)?.value)
}

fn main() {}
