//! Seccomp filters: what the interpreter of a target's says is what a plain one says; and what the filter of executors
//! says to calls.
#![no_main]

use arbitrary::Arbitrary;
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET,
    BPF_W,
};
use libfuzzer_sys::fuzz_target;
use process_vm_exec::fuzzing;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

#[derive(Arbitrary, Debug)]
struct Input {
    nr: u16,
    args: [u64; 6],
    ip: u64,
    /// Kind, `jt`, `jf`, `k`.
    filter: Vec<(u8, u8, u8, u32)>,
}

/// `struct seccomp_data`, as words.
fn data(nr: u32, ip: u64, args: [u64; 6]) -> [u32; 16] {
    let mut words = [0; 16];
    (words[0], words[1]) = (nr, AUDIT_ARCH_X86_64);
    for (half, value) in words[2..].chunks_exact_mut(2).zip([ip].into_iter().chain(args)) {
        (half[0], half[1]) = (value as u32, (value >> 32) as u32);
    }
    words
}

/// What the kernel's interpreter returns; None for a filter that it would not take.
fn verdict(filter: &[(u16, u8, u8, u32)], data: &[u32; 16]) -> Option<u32> {
    let (mut at, mut a) = (0usize, 0);
    loop {
        let &(code, jt, jf, k) = filter.get(at)?;
        let branch = |is_so| usize::from(if is_so { jt } else { jf });
        at += 1;
        at += match u32::from(code) {
            c if c == BPF_LD | BPF_W | BPF_ABS => {
                a = *data.get(k as usize / 4).filter(|_| k % 4 == 0)?;
                0
            }
            c if c == BPF_ALU | BPF_AND | BPF_K => {
                a &= k;
                0
            }
            c if c == BPF_JMP | BPF_JA => k as usize,
            c if c == BPF_JMP | BPF_JEQ | BPF_K => branch(a == k),
            c if c == BPF_JMP | BPF_JGT | BPF_K => branch(a > k),
            c if c == BPF_JMP | BPF_JGE | BPF_K => branch(a >= k),
            c if c == BPF_JMP | BPF_JSET | BPF_K => branch(a & k != 0),
            c if c == BPF_RET | BPF_K => return Some(k),
            _ => return None,
        };
    }
}

fuzz_target!(|input: Input| {
    const KINDS: [u32; 8] = [
        BPF_LD | BPF_W | BPF_ABS,
        BPF_ALU | BPF_AND | BPF_K,
        BPF_JMP | BPF_JA,
        BPF_JMP | BPF_JEQ | BPF_K,
        BPF_JMP | BPF_JGT | BPF_K,
        BPF_JMP | BPF_JGE | BPF_K,
        BPF_JMP | BPF_JSET | BPF_K,
        BPF_RET | BPF_K,
    ];
    let filter: Vec<_> = input
        .filter
        .iter()
        .map(|&(kind, jt, jf, k)| {
            (KINDS.get(usize::from(kind)).map_or(u16::from(kind), |&code| code as u16), jt, jf, k)
        })
        .collect();
    let action = |verdict: u32| verdict & libc::SECCOMP_RET_ACTION_FULL;
    if let Some(true) = fuzzing::filter_allows(&filter, input.nr.into(), input.args) {
        // Wherever the call is made.
        for ip in [0, input.ip, u64::MAX] {
            let said = verdict(&filter, &data(input.nr.into(), ip, input.args)).map(action);
            assert!(
                [Some(libc::SECCOMP_RET_ALLOW), Some(libc::SECCOMP_RET_LOG)].contains(&said),
                "{said:x?}"
            );
        }
    }

    let (filter, code) = fuzzing::executor_filter();
    // The address of the instruction behind the call is what the kernel tells.
    let within = code.start + input.ip % (code.end - code.start + 1);
    for ip in [input.ip, within] {
        let said = verdict(&filter, &data(input.nr.into(), ip, input.args))
            .map(action)
            .expect("a filter of the kernel's");
        if !(code.start..=code.end).contains(&ip) {
            assert_eq!(said, libc::SECCOMP_RET_TRAP, "outside of the code, at {ip:#x}");
        } else if said == libc::SECCOMP_RET_ALLOW {
            let harmless =
                [libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_rt_sigreturn, libc::SYS_rt_sigprocmask];
            assert!(harmless.contains(&i64::from(input.nr)), "call {}", input.nr);
            let in_region = input.args[0] >> 32 == code.start >> 32;
            assert!(i64::from(input.nr) != libc::SYS_futex || in_region && input.args[1] as u32 <= 1);
        }
    }
});
