use process_vm_exec::{Call, Sysno};

fn main() {
    let _ = Call::new(Sysno::fsync).fd(0, 3);
}
