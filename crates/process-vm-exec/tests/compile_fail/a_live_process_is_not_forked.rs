use process_vm_exec::LiveProcess;

fn fork(process: &LiveProcess) {
    let _ = process.fork();
}

fn main() {}
