//! Several tasks of one process.

use std::{ffi::CString, fs};

use appkernel::{Config, Program, Task};
use process_vm_exec::WaitStatus;
use rustix::fs::Mode;

#[test]
fn each_task_inherits_the_umask_that_its_process_had() {
    let directory = std::env::temp_dir().join(format!("appkernel-tasks-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    for (mask, has_changed) in [(0o027, true), (0o027, false), (0o077, true), (0o077, false)] {
        if has_changed {
            rustix::process::umask(Mode::from_raw_mode(mask));
        }
        let file = directory.join("mask");
        let script = format!("umask > {}", file.display());
        let args = ["sh", "-c", &script].map(|arg| CString::new(arg).expect("no NUL"));
        let program = Program::open(c"/bin/sh", args.into(), Vec::new()).expect("every machine has it");
        let status =
            Task::start(program, Config::default()).and_then(|mut task| task.run()).expect("it runs");
        assert_eq!(status, WaitStatus::Exited(0));
        let told = fs::read_to_string(&file).expect("it was written");
        assert_eq!(u32::from_str_radix(told.trim(), 8), Ok(mask), "{told}");
        fs::remove_file(&file).expect("it is ours");
    }
    fs::remove_dir_all(directory).expect("it is ours");
}
