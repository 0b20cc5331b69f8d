//! What guest code may ask the host kernel for: nothing. And what the executor may, which shares its rights.
//!
//! The guest can jump into the executor's code, so everything allowed here is harmless in its hands: it may sleep
//! and wake in its own mailboxes, yield, and change its own registers and signal mask.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP, sock_filter,
};

use super::{code, layout};

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NR: u32 = 0;
const ARCH: u32 = 4;
const IP_LOW: u32 = 8;
const IP_HIGH: u32 = 12;
const ARG0_HIGH: u32 = 20;
const ARG1_LOW: u32 = 24;

/// Where each verdict stands at the end of the program.
#[derive(Clone, Copy)]
enum Verdict {
    Trap,
    Kill,
    Allow,
}

/// The filter, in the kernel's format. Every call from outside the executor's code raises `SIGSYS`, where Syscall
/// User Dispatch has not done so already (the vsyscall page, kernels without it).
#[allow(clippy::cast_possible_truncation, reason = "addresses are split into halves")]
pub(crate) fn program() -> Vec<sock_filter> {
    use Verdict::{Allow, Kill, Trap};
    let code = code::range();
    let [futex, sched_yield, rt_sigreturn, rt_sigprocmask] =
        [libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_rt_sigreturn, libc::SYS_rt_sigprocmask]
            .map(|nr| u32::try_from(nr).expect("a call number"));
    let region_high = (layout::BASE >> 32) as u32;
    let mut filter = Assembler::default();
    filter.load(ARCH);
    filter.unless_equal(code::AUDIT_ARCH_X86_64, Trap);
    filter.load(IP_HIGH);
    filter.unless_equal(region_high, Trap);
    filter.load(IP_LOW);
    filter.unless_at_least(code.start as u32, Trap);
    filter.if_at_least(code.end as u32 + 1, Trap);
    filter.load(NR);
    filter.if_equal(sched_yield, Allow);
    filter.if_equal(rt_sigreturn, Allow);
    filter.if_equal(rt_sigprocmask, Allow);
    filter.unless_equal(futex, Kill);
    filter.load(ARG0_HIGH);
    filter.unless_equal(region_high, Kill);
    // FUTEX_WAIT and FUTEX_WAKE are 0 and 1; every flag and other operation has a higher bit.
    filter.load(ARG1_LOW);
    filter.and(!1);
    filter.unless_equal(0, Kill);
    filter.finish()
}

/// Puts a filter together: conditional jumps to verdicts, which stand behind the last instruction.
#[derive(Default)]
struct Assembler {
    code: Vec<sock_filter>,
    jumps: Vec<(usize, bool, Verdict)>,
}

impl Assembler {
    fn load(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_W | BPF_ABS, offset);
    }

    fn and(&mut self, mask: u32) {
        self.push(BPF_ALU | BPF_AND | BPF_K, mask);
    }

    fn if_equal(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JEQ, value, true, verdict);
    }

    fn unless_equal(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JEQ, value, false, verdict);
    }

    fn if_at_least(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JGE, value, true, verdict);
    }

    fn unless_at_least(&mut self, value: u32, verdict: Verdict) {
        self.jump(BPF_JGE, value, false, verdict);
    }

    fn jump(&mut self, condition: u32, value: u32, when: bool, verdict: Verdict) {
        self.jumps.push((self.code.len(), when, verdict));
        self.push(BPF_JMP | condition | BPF_K, value);
    }

    fn push(&mut self, opcode: u32, k: u32) {
        let code = u16::try_from(opcode).expect("BPF opcodes have 16 bits");
        self.code.push(sock_filter { code, jt: 0, jf: 0, k });
    }

    /// Falls through to "allow".
    fn finish(mut self) -> Vec<sock_filter> {
        let end = self.code.len();
        for (at, when, verdict) in self.jumps.clone() {
            let target = end
                + matches!(verdict, Verdict::Kill) as usize
                + 2 * matches!(verdict, Verdict::Trap) as usize;
            let distance = u8::try_from(target - at - 1).expect("the filter is short");
            let instruction = &mut self.code[at];
            *(if when { &mut instruction.jt } else { &mut instruction.jf }) = distance;
        }
        for verdict in [SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP] {
            self.push(BPF_RET | BPF_K, verdict);
        }
        self.code
    }
}
