//! dev
use process_vm_exec::{AddressSpace, Sysno};
fn main() {
    let pid: i32 = std::env::args().nth(1).unwrap().parse().unwrap();
    loop {
        let s = AddressSpace::attach_pid(pid).expect("attach");
        s.syscall(Sysno::getpid, [0; 6]).expect("getpid");
        s.detach().expect("detach");
    }
}
