//! dev only
use process_vm_exec::AddressSpace;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
fn main() {
    let pid: i32 = std::env::args().nth(1).unwrap().parse().unwrap();
    let file =
        std::fs::OpenOptions::new().read(true).write(true).open(std::env::args().nth(2).unwrap()).unwrap();
    let n: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    let mut gaps = vec![];
    let mut noise = vec![];
    let mut calls = vec![];
    let read = || {
        let mut b = [0u8; 8];
        file.read_exact_at(&mut b, 0).unwrap();
        u64::from_ne_bytes(b)
    };
    for _ in 0..n {
        file.write_all_at(&0u64.to_ne_bytes(), 0).unwrap();
        std::thread::sleep(Duration::from_millis(3));
        noise.push(read());
        file.write_all_at(&0u64.to_ne_bytes(), 0).unwrap();
        let s = Instant::now();
        let space = AddressSpace::attach_pid(pid).unwrap();
        calls.push(s.elapsed().as_nanos() as u64);
        std::thread::sleep(Duration::from_millis(1));
        gaps.push(read());
        space.detach().unwrap();
    }
    for (name, v) in [("gap", &mut gaps), ("noise", &mut noise), ("call", &mut calls)] {
        v.sort();
        println!(
            "{name}: min {} median {} p90 {} p99 {} max {}",
            v[0],
            v[n / 2],
            v[n * 9 / 10],
            v[n * 99 / 100],
            v[n - 1]
        );
    }
}
