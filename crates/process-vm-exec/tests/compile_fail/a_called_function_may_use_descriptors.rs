use process_vm_exec::{LiveProcess, Tls};

fn call(process: &LiveProcess) {
    let _ = process.call(0x1000, &[], Tls::Own);
}

fn main() {}
