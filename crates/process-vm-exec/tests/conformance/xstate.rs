//! The extended state (x87, SSE, AVX, AVX-512) belongs to the context.

use std::ops::Range;

use iced_x86::{IcedError, code_asm::*};
use raw_cpuid::CpuId;

use crate::common::{CODE, DATA, Guest, NR, Numbers, claims, skip};

/// Where guests load vector registers from, and where they store them to.
const LOAD: u64 = DATA;
const STORE: u64 = DATA + 0x1000;

/// In the standard format of XSAVE (Intel SDM volume 1, 13.4).
const FCW: Range<usize> = 0..2;
const MXCSR: Range<usize> = 24..28;
const ST0: usize = 32;
const XMM0: usize = 160;
const XSTATE_BV: Range<usize> = 512..520;

const ZMM: [AsmRegisterZmm; 32] = [
    zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11, zmm12, zmm13, zmm14, zmm15,
    zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23, zmm24, zmm25, zmm26, zmm27, zmm28, zmm29, zmm30,
    zmm31,
];
const YMM: [AsmRegisterYmm; 16] =
    [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];
const XMM: [AsmRegisterXmm; 16] =
    [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15];
const MASKS: [AsmRegisterK; 8] = [k0, k1, k2, k3, k4, k5, k6, k7];

fn has_avx() -> bool {
    CpuId::new().get_feature_info().is_some_and(|info| info.has_avx() && info.has_oxsave())
}

fn has_avx512() -> bool {
    has_avx() && CpuId::new().get_extended_feature_info().is_some_and(|info| info.has_avx512f())
}

/// Offset of a component in the standard format (CPUID leaf 0xd).
fn component(number: u32) -> usize {
    let state = CpuId::new().get_extended_state_info().expect("XSAVE");
    let found = state.iter().find(|component| component.subleaf == number).expect("the component");
    usize::try_from(found.offset()).expect("a small offset")
}

/// How a set of vector registers is moved, and how many bytes it is.
#[derive(Clone, Copy)]
enum Vectors {
    Sse,
    Avx,
    Avx512,
}

impl Vectors {
    fn here() -> Vec<Self> {
        let mut sets = vec![Self::Sse];
        if has_avx() {
            sets.push(Self::Avx)
        } else {
            skip("no AVX")
        }
        if has_avx512() {
            sets.push(Self::Avx512)
        } else {
            skip("no AVX-512")
        }
        sets
    }

    const fn len(self) -> usize {
        match self {
            Self::Sse => 16 * 16,
            Self::Avx => 16 * 32,
            Self::Avx512 => 32 * 64,
        }
    }

    fn load(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        match self {
            Self::Sse => {
                (LOAD..).step_by(16).zip(XMM).try_for_each(|(at, reg)| a.movdqu(reg, xmmword_ptr(at)))
            }
            Self::Avx => {
                (LOAD..).step_by(32).zip(YMM).try_for_each(|(at, reg)| a.vmovdqu(reg, ymmword_ptr(at)))
            }
            Self::Avx512 => {
                (LOAD..).step_by(64).zip(ZMM).try_for_each(|(at, reg)| a.vmovdqu64(reg, zmmword_ptr(at)))
            }
        }
    }

    fn store(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        match self {
            Self::Sse => {
                (STORE..).step_by(16).zip(XMM).try_for_each(|(at, reg)| a.movdqu(xmmword_ptr(at), reg))
            }
            Self::Avx => {
                (STORE..).step_by(32).zip(YMM).try_for_each(|(at, reg)| a.vmovdqu(ymmword_ptr(at), reg))
            }
            Self::Avx512 => {
                (STORE..).step_by(64).zip(ZMM).try_for_each(|(at, reg)| a.vmovdqu64(zmmword_ptr(at), reg))
            }
        }
    }

    /// Load once; then for ever store and call.
    fn program(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut top = a.create_label();
        self.load(a)?;
        a.set_label(&mut top)?;
        self.store(a)?;
        a.mov(eax, NR)?;
        a.syscall()?;
        a.jmp(top)
    }
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    (0..len).map(|_| numbers.byte()).collect()
}

fn stored(guest: &Guest, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    guest.space.read(STORE, &mut found).expect("data");
    found
}

claims! {
    planned;

    fn vector_registers_survive_system_calls(engine) {
        for set in Vectors::here() {
            let values = bytes(set.len(), 1);
            let mut guest = Guest::new(engine, |a| set.program(a));
            guest.space.write(LOAD, &values).expect("data");
            for round in 0..20 {
                guest.space.write(STORE, &vec![0; set.len()]).expect("data");
                guest.call();
                assert!(stored(&guest, set.len()) == values, "round {round}, {} bytes", set.len());
            }
        }
    }

    fn vector_registers_of_two_contexts_in_one_space_do_not_mix(engine) {
        for set in Vectors::here() {
            let mut one = Guest::new(engine, |a| set.program(a));
            let mut other = one.another(1);
            let (values, others) = (bytes(set.len(), 2), bytes(set.len(), 3));
            one.space.write(LOAD, &values).expect("data");
            one.call();
            other.space.write(LOAD, &others).expect("data");
            other.call();
            for round in 0..20 {
                one.call();
                assert!(stored(&one, set.len()) == values, "round {round}, {} bytes", set.len());
                other.call();
                assert!(stored(&other, set.len()) == others, "round {round}, {} bytes", set.len());
            }
        }
    }

    fn the_supervisor_sees_the_vector_registers_of_the_guest(engine) {
        let sets = Vectors::here();
        for set in sets {
            let values = bytes(set.len(), 4);
            let mut guest = Guest::new(engine, |a| set.program(a));
            guest.space.write(LOAD, &values).expect("data");
            for round in 0..5 {
                guest.call();
                let area = guest.ctx.xstate().expect("the extended state").to_vec();
                let found: Vec<u8> = match set {
                    Vectors::Sse => area[XMM0..XMM0 + 256].to_vec(),
                    Vectors::Avx => {
                        let high = component(2);
                        (0..16).flat_map(|i| {
                            [&area[XMM0 + i * 16..][..16], &area[high + i * 16..][..16]].concat()
                        }).collect()
                    }
                    Vectors::Avx512 => {
                        let (high, higher, upper) = (component(2), component(6), component(7));
                        (0..32).flat_map(|i| if i < 16 {
                            [
                                &area[XMM0 + i * 16..][..16],
                                &area[high + i * 16..][..16],
                                &area[higher + i * 32..][..32],
                            ].concat()
                        } else {
                            area[upper + (i - 16) * 64..][..64].to_vec()
                        }).collect()
                    }
                };
                assert!(found == values, "round {round}, {} bytes", set.len());
            }
        }
    }

    fn the_supervisor_sets_the_vector_registers_of_the_guest(engine) {
        let mut guest = Guest::new(engine, |a| Vectors::Sse.program(a));
        guest.call();
        for round in 0..5 {
            let values = bytes(256, 10 + round);
            let mut area = guest.ctx.xstate().expect("the extended state").to_vec();
            area[XMM0..XMM0 + 256].copy_from_slice(&values);
            area[XSTATE_BV.start] |= 2;
            guest.ctx.set_xstate(&area).expect("a valid area");
            guest.call();
            assert!(stored(&guest, 256) == values, "round {round}");
        }
    }

    fn the_supervisor_sets_the_high_halves_too(engine) {
        if !has_avx() {
            return skip("no AVX");
        }
        let mut guest = Guest::new(engine, |a| Vectors::Avx.program(a));
        guest.call();
        let (low, high) = (bytes(256, 20), bytes(256, 21));
        let mut area = guest.ctx.xstate().expect("the extended state").to_vec();
        area[XMM0..XMM0 + 256].copy_from_slice(&low);
        area[component(2)..][..256].copy_from_slice(&high);
        area[XSTATE_BV.start] |= 6;
        guest.ctx.set_xstate(&area).expect("a valid area");
        guest.call();
        let expected: Vec<u8> = (0..16)
            .flat_map(|i| [&low[i * 16..][..16], &high[i * 16..][..16]].concat())
            .collect();
        assert!(stored(&guest, 512) == expected);
    }

    fn mask_registers_survive_system_calls(engine) {
        if !has_avx512() {
            return skip("no AVX-512");
        }
        let mut guest = Guest::new(engine, |a| {
            (LOAD..).step_by(8).zip(MASKS).try_for_each(|(at, reg)| a.kmovq(reg, qword_ptr(at)))?;
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            (STORE..).step_by(8).zip(MASKS).try_for_each(|(at, reg)| a.kmovq(qword_ptr(at), reg))?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(top)
        });
        let values = bytes(64, 5);
        guest.space.write(LOAD, &values).expect("data");
        for round in 0..20 {
            guest.call();
            assert!(stored(&guest, 64) == values, "round {round}");
            let area = guest.ctx.xstate().expect("the extended state");
            assert!(area[component(5)..][..64] == values, "round {round}");
        }
    }

    fn the_x87_stack_and_its_control_word_survive_system_calls(engine) {
        let mut guest = Guest::new(engine, |a| {
            a.fninit()?;
            a.fldcw(word_ptr(LOAD))?;
            a.fldpi()?;
            a.fld1()?;
            for _ in 0..10 {
                a.mov(eax, NR)?;
                a.syscall()?;
            }
            a.fnstcw(word_ptr(STORE))?;
            a.fstp(qword_ptr(STORE + 8))?;
            a.fstp(qword_ptr(STORE + 16))?;
            a.mov(eax, NR + 1)?;
            a.syscall()
        });
        const PRECISE_ROUND_DOWN: u64 = 0x077f;
        guest.poke(LOAD, PRECISE_ROUND_DOWN);
        for _ in 0..10 {
            assert_eq!(guest.call().nr, u64::from(NR));
            let area = guest.ctx.xstate().expect("the extended state");
            assert_eq!(area[FCW], [0x7f, 0x07]);
            assert_eq!(area[ST0..ST0 + 10], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f], "1.0 on top");
        }
        assert_eq!(guest.call().nr, u64::from(NR) + 1);
        assert_eq!(guest.peek(STORE) & 0xffff, PRECISE_ROUND_DOWN);
        assert_eq!(f64::from_bits(guest.peek(STORE + 8)), 1.0);
        // Rounded down, pi is the double below or at it.
        assert_eq!(f64::from_bits(guest.peek(STORE + 16)), std::f64::consts::PI);
    }

    fn the_sse_control_word_goes_in_and_out(engine) {
        const TO_ZERO_AND_FLUSH: u32 = 0xff80;
        let mut guest = Guest::new(engine, |a| {
            a.ldmxcsr(dword_ptr(LOAD))?;
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.stmxcsr(dword_ptr(STORE))?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(top)
        });
        guest.poke(LOAD, u64::from(TO_ZERO_AND_FLUSH));
        for _ in 0..5 {
            guest.call();
            assert_eq!(guest.peek(STORE), u64::from(TO_ZERO_AND_FLUSH));
            let area = guest.ctx.xstate().expect("the extended state");
            assert_eq!(area[MXCSR], TO_ZERO_AND_FLUSH.to_le_bytes());
        }
        let mut area = guest.ctx.xstate().expect("the extended state").to_vec();
        area[MXCSR].copy_from_slice(&0x1f80u32.to_le_bytes());
        area[XSTATE_BV.start] |= 2;
        guest.ctx.set_xstate(&area).expect("a valid area");
        guest.call();
        assert_eq!(guest.peek(STORE), 0x1f80);
    }

    fn a_new_context_starts_with_the_initial_state(engine) {
        let mut dirty = Guest::new(engine, |a| {
            Vectors::Sse.load(a)?;
            a.fldcw(word_ptr(LOAD + 0x800))?;
            a.mov(eax, NR)?;
            a.syscall()?;
            // Second entry point, aligned for certainty.
            a.nops_with_size(64)?;
            Vectors::Sse.store(a)?;
            a.fnstcw(word_ptr(STORE + 0x800))?;
            a.stmxcsr(dword_ptr(STORE + 0x808))?;
            a.mov(eax, NR + 1)?;
            a.syscall()
        });
        dirty.space.write(LOAD, &bytes(256, 6)).expect("data");
        dirty.poke(LOAD + 0x800, 0x077f);
        dirty.call();
        let second_entry = dirty.ctx.registers().rip;
        let mut fresh = dirty.another(1);
        fresh.regs().rip = second_entry;
        assert_eq!(fresh.call().nr, u64::from(NR) + 1);
        assert!(stored(&fresh, 256).iter().all(|&byte| byte == 0), "vector registers of another context leaked");
        assert_eq!(fresh.peek(STORE + 0x800) & 0xffff, 0x37f);
        assert_eq!(fresh.peek(STORE + 0x808) & 0xffff_ffff, 0x1f80);
    }

    fn vector_registers_survive_faults_and_interrupts(engine) {
        for set in Vectors::here() {
            let values = bytes(set.len(), 7);
            let mut guest = Guest::new(engine, |a| {
                set.load(a)?;
                a.ud2()?;
                let mut spin = a.create_label();
                a.set_label(&mut spin)?;
                a.cmp(dword_ptr(DATA + 0x4000), 0)?;
                a.je(spin)?;
                set.store(a)?;
                a.mov(eax, NR)?;
                a.syscall()
            });
            guest.space.write(LOAD, &values).expect("data");
            guest.fault();
            guest.regs().rip += 2;
            guest.spin_for(std::time::Duration::from_millis(2));
            guest.poke(DATA + 0x4000, 1);
            guest.call();
            assert!(stored(&guest, set.len()) == values, "{} bytes", set.len());
        }
    }

    fn extended_state_that_no_processor_would_load_is_refused(engine) {
        let mut guest = Guest::new(engine, |a| Vectors::Sse.program(a));
        guest.call();
        let good = guest.ctx.xstate().expect("the extended state").to_vec();
        let mut reserved_mxcsr = good.clone();
        reserved_mxcsr[MXCSR.end - 1] = 0xff;
        let mut unknown_component = good.clone();
        unknown_component[XSTATE_BV.end - 1] |= 0x40;
        let mut header = good.clone();
        header[528..576].fill(0xff);
        for (what, bad) in [
            ("MXCSR with reserved bits", &reserved_mxcsr[..]),
            ("an unknown component", &unknown_component[..]),
            ("a header that is not zero", &header[..]),
            ("too short", &good[..100]),
            ("empty", &[]),
        ] {
            assert!(guest.ctx.set_xstate(bad).is_err(), "accepted: {what}");
        }
        guest.call();
        guest.ctx.set_xstate(&good).expect("its own state");
        guest.call();
        assert!(guest.ctx.registers().rip > CODE);
    }
}
