//! The planner of rewritten sites: a patch of the text and a stub for it, or neither.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use process_vm_exec::rewriting::{Forms, Planner, Text, Unplanned};
use process_vm_exec::{DEFAULT_REGION, Registers};

/// Where the text of a fuzzed site is.
const TEXT: u64 = 0x40_0000;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    offset: u8,
    registers: [u64; 8],
    text: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let [rax, rdi, rsi, rdx, rbx, rbp, r8, r9] = input.registers;
    let rip = TEXT + u64::from(input.offset);
    let registers = Registers { rax, rdi, rsi, rdx, rbx, rbp, r8, r9, rip, ..Registers::default() };
    // A `syscall` where one has to be: else most inputs end at once.
    let mut text = input.text.to_vec();
    let end = usize::from(input.offset);
    if let Some(syscall) = end.checked_sub(2).and_then(|start| text.get_mut(start..end)) {
        syscall.copy_from_slice(&[0x0f, 0x05]);
    }
    for forms in [Forms::All, Forms::Behind] {
        plan(&text, &registers, forms);
    }
});

fn plan(text: &[u8], registers: &Registers, forms: Forms) {
    let mut planner = Planner::new(DEFAULT_REGION.start).expect("a region");
    let plan = match planner.plan(Text::new(TEXT, text), registers, forms) {
        Err(Unplanned::NoStubs(places)) => {
            let Some(place) = places.near(TEXT).find(|place| place.abs_diff(TEXT) > 1 << 20) else { return };
            planner.add_stubs(place).expect("one of the places");
            planner.plan(Text::new(TEXT, text), registers, forms).expect("a plan with the page it asked for")
        }
        Ok(plan) => plan,
        Err(_) => return,
    };
    let (stub, range) = (plan.stub(), plan.range());
    let page = planner.stubs().find(|page| page.contains(&stub.at)).expect("a page of stubs");
    assert!(stub.at >= page.start + 8 && stub.at + stub.bytes.len() as u64 <= page.end);
    let in_text = TEXT..TEXT + text.len() as u64;
    assert!(in_text.contains(&range.start) && range.end <= in_text.end, "{range:x?}");
    assert_eq!(plan.original().len(), plan.replacement().len());
    planner.commit(plan);
    for at in in_text.clone() {
        let there = planner.present(at);
        assert!(there == at || page.contains(&there), "{at:#x} to {there:#x}");
    }
    for there in page {
        let original = planner.original_address(there);
        assert!(original == there || in_text.contains(&original) || original == in_text.end, "{there:#x}");
    }
}
