//! Plans against the decoder: what takes the place of a site does what the site did.

use std::cell::Cell;
use std::ops::Range;

use iced_x86::{Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::arch::x86_64::USER_END;

const TEXT: u64 = 0x5555_5540_0000;
const NR: u32 = 39;
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Text with one site.
#[derive(Debug)]
struct Case {
    text: Vec<u8>,
    /// The address behind its `syscall`.
    site: u64,
}

impl Case {
    fn text(&self) -> Text<'_> {
        Text::new(TEXT, &self.text)
    }

    fn registers(&self) -> Registers {
        Registers { rip: self.site, rcx: self.site, rax: NR.into(), ..Registers::default() }
    }

    fn bytes(&self, range: Range<u64>) -> &[u8] {
        self.text().get(range).expect("text")
    }
}

/// An instruction that programs have near their calls; or any bytes.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let of = |bytes: &[u8]| Just(bytes.to_vec()).boxed();
    let plain = [
        &[0x90][..],
        &[0x50],
        &[0x31, 0xff],
        &[0x49, 0x89, 0xca],
        &[0x85, 0xc0],
        &[0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff],
        &[0x48, 0x83, 0xc4, 0x08],
        &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
        &[0xc3],
        &[0xcc],
    ];
    let with_number =
        |code: &'static [u8]| any::<[u8; 4]>().prop_map(move |number| [code, &number[..]].concat()).boxed();
    let with_distance = |code: u8| any::<u8>().prop_map(move |distance| vec![code, distance]).boxed();
    let near = |code: &'static [u8]| {
        (-4096..4096i32).prop_map(move |distance| [code, &distance.to_le_bytes()[..]].concat()).boxed()
    };
    let others = [
        with_number(&[0xbf]),
        with_number(&[0x48, 0x8d, 0x3d]),
        near(&[0x48, 0x8b, 0x35]),
        near(&[0xe9]),
        near(&[0x0f, 0x83]),
        with_distance(0xeb),
        (0x70..0x80u8).prop_flat_map(with_distance).boxed(),
        vec(any::<u8>(), 1..6).boxed(),
    ];
    prop::sample::select(plain.map(of).into_iter().chain(others).collect::<Vec<_>>()).prop_flat_map(|one| one)
}

fn case() -> impl Strategy<Value = Case> {
    let instructions = |most| vec(instruction(), 0..most).prop_map(|instructions| instructions.concat());
    (instructions(6), any::<bool>(), instructions(3), instructions(8)).prop_map(
        |(before, moves, between, behind)| {
            // So much of one kind that all ways of decoding agree.
            let mut text = vec![0x50; 192];
            text.extend(before);
            if moves {
                text.push(0xb8);
                text.extend(NR.to_le_bytes());
            }
            text.extend(between);
            text.extend(SYSCALL);
            let site = TEXT + text.len() as u64;
            text.extend(behind);
            text.extend([0x50; 192]);
            Case { text, site }
        },
    )
}

/// Plans with pages of stubs wherever the planner wants some.
fn plan(planner: &mut Planner, case: &Case, forms: Forms) -> Option<Plan> {
    match planner.plan(case.text(), &case.registers(), forms) {
        Err(Unplanned::NoStubs(places)) => {
            let place = places.near(TEXT).find(|place| place.abs_diff(TEXT) > 1 << 20)?;
            assert_eq!(planner.add_stubs(place), Some(Page::header(Region::DEFAULT)));
            Some(
                planner
                    .plan(case.text(), &case.registers(), forms)
                    .expect("a plan with the page it asked for"),
            )
        }
        Err(Unplanned::Unsuitable) => None,
        Err(Unplanned::Planned) => panic!("it has a plan"),
        Ok(plan) => Some(plan),
    }
}

fn decode(bytes: &[u8], at: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).into_iter().collect()
}

/// Do two instructions at different places do the same?
fn are_alike(one: &Instruction, other: &Instruction) -> bool {
    let is_direct = |instruction: &Instruction| {
        matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        )
    };
    if is_direct(one) || is_direct(other) {
        return one.condition_code() == other.condition_code()
            && one.flow_control() == other.flow_control()
            && one.near_branch_target() == other.near_branch_target();
    }
    // Decoded addresses are absolute.
    one == other
}

fn is_jump_to(instruction: &Instruction, to: u64) -> bool {
    instruction.code() == Code::Jmp_rel32_64 && instruction.near_branch_target() == to
}

/// From `lea return_to(%rip), %r11; jmp *trampoline(%rip)` on.
fn after_call<'a>(stub: &'a [Instruction], planner: &Planner, return_to: u64) -> &'a [Instruction] {
    let [lea, jump, rest @ ..] = stub else { panic!("a call: {stub:x?}") };
    assert_eq!((lea.code(), lea.ip_rel_memory_address()), (Code::Lea_r64_m, return_to));
    assert_eq!(jump.code(), Code::Jmp_rm64);
    assert!(
        planner.stubs().any(|page| page.start == jump.ip_rel_memory_address() && page.contains(&lea.ip()))
    );
    rest
}

/// The stub does what the site did, and each address in it stands for the right one.
fn check_stub(planner: &Planner, case: &Case, plan: &Plan) {
    let syscall = case.site - SYSCALL.len() as u64;
    let stub = plan.stub();
    let page = planner.stubs().find(|page| page.contains(&stub.at)).expect("a page of stubs");
    assert!(stub.at >= page.start + 8 && stub.at + stub.bytes.len() as u64 <= page.end);
    let stub = decode(&stub.bytes, stub.at);
    let original = |from| decode(case.bytes(from..case.text().end()), from);
    if plan.range().start == syscall {
        let back = stub[2].ip();
        let [result, rest @ ..] = after_call(&stub, planner, back) else { panic!("a way back: {stub:x?}") };
        assert_eq!((result.code(), result.ip_rel_memory_address()), (Code::Lea_r64_m, case.site));
        let (way_back, moved) = rest.split_last().expect("a way back");
        let mut end = case.site;
        for (moved, original) in moved.iter().zip(original(case.site)) {
            assert!(are_alike(moved, &original), "{moved:x?} for {original:x?}");
            assert_eq!(planner.present(original.ip()), moved.ip());
            assert_eq!(planner.original_address(moved.ip()), original.ip());
            end = original.next_ip();
        }
        assert!(end >= plan.range().end, "all that is overwritten has moved");
        assert!(is_jump_to(way_back, end), "{way_back:x?}");
    } else {
        let originals: Vec<_> =
            original(plan.range().start).into_iter().take_while(|original| original.ip() < syscall).collect();
        assert_eq!(originals.last().map(Instruction::next_ip), Some(syscall));
        for (moved, original) in stub.iter().zip(&originals) {
            assert!(are_alike(moved, original), "{moved:x?} for {original:x?}");
            assert_eq!(planner.original_address(moved.ip()), original.ip());
        }
        assert!(originals[0].next_ip() >= plan.range().end, "one instruction is overwritten");
        assert!(after_call(&stub[originals.len()..], planner, case.site).is_empty());
    }
}

/// Where the site was there is a jump to the stub, and a breakpoint wherever else an instruction began.
fn check_replacement(case: &Case, plan: &Plan) {
    let range = plan.range();
    assert_eq!(plan.original(), case.bytes(range.clone()));
    assert!(is_jump_to(&decode(plan.replacement(), range.start)[0], plan.stub().at));
    let starts = decode(case.bytes(range.start..case.text().end()), range.start);
    for at in starts.iter().map(Instruction::ip).filter(|at| range.contains(at) && *at != range.start) {
        let index = usize::try_from(at - range.start).expect("an index");
        assert_eq!(plan.replacement()[index], INT3, "{at:#x} in {:x?}", plan.replacement());
    }
}

/// A processor that has fetched some bytes before a step and others behind it finds what was there before or what is there
/// then: of instructions, no step changes both beginnings and what follows.
fn check_steps(present: &mut [u8], change: Change<'_>, range: &Range<u64>, breakpoints: &[u64]) {
    let index = |at: u64| usize::try_from(at - range.start).expect("an index");
    for (step, writes) in change.steps().into_iter().enumerate() {
        for write in writes {
            for (at, byte) in (write.at..).zip(write.bytes) {
                let is_change = std::mem::replace(&mut present[index(at)], byte) != byte;
                let is_start = breakpoints.contains(&at);
                assert!(!is_change || is_start == (step != 1), "step {step} changes {at:#x}");
            }
        }
        if step != 2 {
            assert!(breakpoints.iter().all(|&at| present[index(at)] == INT3), "step {step}: {present:x?}");
        }
    }
}

#[test]
fn what_takes_the_place_of_a_site_does_what_that_did() {
    let planned = [const { Cell::new(0) }; 2];
    let cases = (case(), prop::sample::select(vec![Forms::All, Forms::Behind]));
    let config = ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&cases, |(case, forms)| {
        let mut planner = Planner::of(Region::DEFAULT);
        let Some(plan) = plan(&mut planner, &case, forms) else { return Ok(()) };
        let range = plan.range();
        let is_behind = range.start == case.site - 2;
        planned[usize::from(is_behind)].update(|count| count + 1);
        assert!(forms == Forms::All || is_behind);
        check_replacement(&case, &plan);

        let mut present = plan.original().to_vec();
        check_steps(&mut present, plan.change(), &range, &plan.breakpoints);
        assert_eq!(present, plan.replacement());
        planner.commit(plan.clone());
        check_stub(&planner, &case, &plan);
        let mut text = case.text.clone();
        let start = usize::try_from(range.start - TEXT).expect("an index");
        text[start..start + present.len()].copy_from_slice(&present);
        planner.undo_in(TEXT, &mut text);
        assert_eq!(text, case.text, "what the guest is to read");

        let taken = planner.take_back(|plan| plan.site() == case.site);
        assert_eq!(taken.len(), 1);
        check_steps(&mut present, taken[0].undo(), &range, &plan.breakpoints);
        assert_eq!(present, plan.original());
        assert!(planner.moved.is_empty() && planner.plans().next().is_none());
        assert_eq!(planner.original, plan.stub.original, "a context may still be in the stub");
        Ok(())
    });
    outcome.expect("plans that do what their sites did");
    assert!(planned.iter().all(|count| count.get() > 1000), "{planned:?}");
}

/// `mov $39,%eax; syscall; cmp $-4095,%rax`, after and before much else.
fn libc_wrapper() -> Case {
    let mut text = vec![0x50; 192];
    text.extend([0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff]);
    text.extend([0x50; 192]);
    Case { text, site: TEXT + 192 + 7 }
}

#[test]
fn a_breakpoint_is_the_plans_the_guests_or_nobodys() {
    let case = libc_wrapper();
    let mut planner = Planner::of(Region::DEFAULT);
    let site = case.site;
    assert_eq!(planner.breakpoint(site - 1), Breakpoint::Unknown);
    let behind = plan(&mut planner, &case, Forms::Behind).expect("a plan");
    assert!(behind.moves(site) && !behind.moves(site - 2) && !behind.moves(site + 1));
    planner.commit(behind);
    // The first byte of the `syscall`, while text changes, and of what is behind it.
    for at in [site - 2, site] {
        assert_eq!(planner.breakpoint(at + 1), Breakpoint::Planned { site });
    }
    for rip in [0, site, site + 2] {
        assert_eq!(planner.breakpoint(rip), Breakpoint::Unknown, "{rip:#x}");
    }
    // syscall; int3; int3; int3
    let mut text = case.text.clone();
    text[199..202].fill(INT3);
    let case = Case { text, site };
    let mut planner = Planner::of(Region::DEFAULT);
    let behind = plan(&mut planner, &case, Forms::Behind).expect("a plan");
    planner.commit(behind);
    assert_eq!(planner.breakpoint(site + 1), Breakpoint::Guests);
    assert_eq!(planner.breakpoint(site - 1), Breakpoint::Planned { site });
}

#[test]
fn registers_show_the_guests_own_text() {
    let case = libc_wrapper();
    let mut planner = Planner::of(Region::DEFAULT);
    let behind = plan(&mut planner, &case, Forms::Behind).expect("a plan");
    planner.commit(behind);
    let there = planner.present(case.site);
    assert!(planner.touches(&(there..there + 1)));
    let seen = planner.original(Registers { rip: there, rcx: there, ..Registers::default() });
    assert_eq!((seen.rip, seen.rcx), (case.site, case.site));
    let seen = planner.original(Registers { rip: there, rcx: 1, ..Registers::default() });
    assert_eq!((seen.rip, seen.rcx), (case.site, 1), "a register of the guest's");
    let elsewhere = Registers { rip: TEXT, rcx: TEXT, ..Registers::default() };
    assert_eq!(planner.original(elsewhere), elsewhere);
    assert_eq!(planner.present(TEXT), TEXT);
}

#[test]
fn plans_are_found_by_what_they_change() {
    let case = libc_wrapper();
    let mut planner = Planner::of(Region::DEFAULT);
    let plan = plan(&mut planner, &case, Forms::All).expect("a plan");
    let Range { start, end } = plan.range();
    assert_eq!((start, end), (case.site - 7, case.site - 2));
    planner.commit(plan);
    for (range, is_met) in [
        (0..start, false),
        (0..start + 1, true),
        (start + 1..start + 2, true),
        (end - 1..u64::MAX, true),
        (end..u64::MAX, false),
        (0..u64::MAX, true),
    ] {
        assert_eq!(planner.plans_in(range.clone()).count(), usize::from(is_met), "{range:x?}");
    }
}

#[test]
fn no_site_is_where_the_executor_or_a_stub_is() {
    let case = libc_wrapper();
    let mut planner = Planner::of(Region::DEFAULT);
    planner.add_stubs(case.site & !0xfff).expect("a place");
    let outcome = planner.plan(case.text(), &case.registers(), Forms::All);
    assert!(matches!(outcome, Err(Unplanned::Unsuitable)), "{outcome:?}");
    for rip in [0, 1, USER_END + 7, u64::MAX, Region::DEFAULT.start() + 7] {
        let registers = Registers { rip, ..case.registers() };
        let bytes = &case.text[192..];
        let outcome =
            Planner::of(Region::DEFAULT).plan(Text::new(rip.wrapping_sub(7), bytes), &registers, Forms::All);
        assert!(matches!(outcome, Err(Unplanned::Unsuitable)), "{rip:#x}: {outcome:?}");
    }
    assert!(matches!(Planner::new(1), Err(crate::Error::Region { start: 1 })));
}

/// Two `syscall`s in a row, of which the second one's bytes are within reach of the first one's jump.
#[test]
fn text_is_decoded_as_it_was_before_its_neighbours_were_rewritten() {
    let first = libc_wrapper();
    let mut planner = Planner::of(Region::DEFAULT);
    let behind = plan(&mut planner, &first, Forms::Behind).expect("a plan");
    let range = behind.range();
    let mut text = first.text.clone();
    let start = usize::try_from(range.start - TEXT).expect("an index");
    text[start..start + behind.replacement().len()].copy_from_slice(behind.replacement());
    planner.commit(behind);
    let (mut own, mut rewritten) = (first.text.clone(), text.clone());
    // mov $39,%eax; syscall; cmp $-4095,%rax; a little further on
    for text in [&mut own, &mut rewritten] {
        text[220..233].copy_from_slice(&first.text[192..205]);
    }
    let second = Case { text: rewritten, site: TEXT + 227 };
    let plan = plan(&mut planner, &second, Forms::All).expect("a plan");
    assert_eq!(plan.range(), TEXT + 220..TEXT + 225);
    for at in TEXT..TEXT + text.len() as u64 {
        let from = usize::try_from(at - TEXT).expect("an index");
        let mut piece = second.text[from..].to_vec();
        planner.undo_in(at, &mut piece);
        assert_eq!(piece, own[from..], "from {at:#x}");
    }
}

/// The text when a plan is applied.
fn rewritten(case: &Case, plan: &Plan) -> Vec<u8> {
    let mut text = case.text.clone();
    let start = usize::try_from(plan.range().start - TEXT).expect("an index");
    text[start..start + plan.replacement().len()].copy_from_slice(plan.replacement());
    text
}

#[test]
fn a_rewritten_site_is_planned_anew_when_its_plan_has_been_taken_back() {
    let case = libc_wrapper();
    let mut planner = Planner::of(Region::DEFAULT);
    let first = plan(&mut planner, &case, Forms::Behind).expect("a plan");
    let again = Case { text: rewritten(&case, &first), site: case.site };
    planner.commit(first.clone());
    for forms in [Forms::All, Forms::Behind] {
        let outcome = planner.plan(again.text(), &again.registers(), forms);
        assert!(matches!(outcome, Err(Unplanned::Planned)), "the first one's change would stay: {outcome:?}");
    }
    assert_eq!(planner.take_back(|plan| plan.site() == case.site).len(), 1);
    let second = plan(&mut planner, &case, Forms::Behind).expect("a plan");
    assert_eq!((second.range(), second.original()), (first.range(), first.original()));
    assert_ne!(second.stub().at, first.stub().at, "a context may be in the first one's");
}

#[test]
fn what_a_plan_has_moved_is_not_replaced_by_a_neighbours() {
    // syscall; mov $39,%eax; syscall: the first one's jump overwrites a part of the second one's number.
    let mut text = vec![0x50; 192];
    text.extend([0x0f, 0x05, 0xb8, 39, 0, 0, 0, 0x0f, 0x05]);
    text.extend([0x50; 192]);
    let first = Case { text, site: TEXT + 194 };
    let mut planner = Planner::of(Region::DEFAULT);
    let behind = plan(&mut planner, &first, Forms::Behind).expect("a plan");
    assert_eq!(behind.range(), TEXT + 192..TEXT + 197);
    let second = Case { text: rewritten(&first, &behind), site: TEXT + 201 };
    planner.commit(behind);
    let plan = plan(&mut planner, &second, Forms::All).expect("a plan that leaves the first one's alone");
    assert_eq!(plan.range().start, TEXT + 199);
}

#[test]
fn what_lies_next_to_a_plan_or_a_page_of_stubs_does_not_meet_it() {
    let case = libc_wrapper();
    let mut planner = Planner::of(Region::DEFAULT);
    let plan = plan(&mut planner, &case, Forms::All).expect("a plan");
    let Range { start, end } = plan.range();
    assert!(!plan.meets(&(0..start)) && plan.meets(&(0..start + 1)));
    assert!(!plan.meets(&(end..u64::MAX)) && plan.meets(&(end - 1..u64::MAX)));
    let Range { start, end } = planner.stubs().next().expect("a page of stubs");
    assert!(!planner.touches(&(start - 1..start)) && planner.touches(&(start - 1..start + 1)));
    assert!(!planner.touches(&(end..end + 1)) && planner.touches(&(end - 1..end + 1)));
}

#[test]
fn places_for_stubs_are_where_a_guest_can_have_memory_and_the_executor_is_not() {
    let Range { start, end } = Region::DEFAULT.range();
    for at in [start - (1 << 20), end + (17 << 20), 16 << 20, USER_END - (256 << 20)] {
        let text = libc_wrapper().text;
        let registers = Registers { rip: at + 199, rax: NR.into(), ..Registers::default() };
        let mut planner = Planner::of(Region::DEFAULT);
        let outcome = planner.plan(Text::new(at, &text), &registers, Forms::All);
        let Err(Unplanned::NoStubs(places)) = outcome else { panic!("{outcome:?}") };
        let places: Vec<_> = places.near(at).collect();
        assert!(!places.is_empty());
        for place in places {
            assert!(!Region::DEFAULT.touches(&(place..place + STUBS_LEN)), "{place:#x}");
            assert!((LOWEST..USER_END - STUBS_LEN).contains(&place), "{place:#x}");
        }
    }
}

#[test]
fn places_below_a_site_come_before_those_above_it_and_near_ones_first() {
    // syscall; pop %rax; pop %rax; add $8,%rsp: of a jump with a prefix, the highest byte of the distance can be chosen.
    let mut text = vec![0x50; 192];
    text.extend([0x0f, 0x05, 0x58, 0x58, 0x48, 0x83, 0xc4, 8]);
    text.extend([0x50; 192]);
    let case = Case { text, site: TEXT + 194 };
    let outcome = Planner::of(Region::DEFAULT).plan(case.text(), &case.registers(), Forms::All);
    let Err(Unplanned::NoStubs(places)) = outcome else { panic!("{outcome:?}") };
    let places: Vec<_> = places.near(TEXT).collect();
    // The first is the one place of a jump without a prefix.
    let (below, above) = places[1..].split_at(places.iter().filter(|&&place| place < TEXT).count() - 1);
    assert!(below.len() > 100 && above.len() > 100);
    assert!(TEXT - below[0] < 16 << 20 && below.is_sorted_by(|near, far| near > far), "{below:x?}");
    assert!(above.is_sorted_by(|far, near| far > near), "{above:x?}");
}

#[test]
fn pages_of_stubs_do_not_overlap() {
    // syscall; pop %rax; pop %rax; add $8,%rsp: a jump to one place in each 16 MiB. The sites are almost the length of a page
    // apart: each needs one of its own.
    let mut planner = Planner::of(Region::DEFAULT);
    for site in 0..40 {
        let mut text = vec![0x50; 192];
        text.extend([0x0f, 0x05, 0x58, 0x58, 0x48, 0x83, 0xc4, 8]);
        text.extend([0x50; 192]);
        let case = Case { text, site: TEXT + 194 + 0xffe0 * site };
        let text = Text::new(TEXT + 0xffe0 * site, &case.text);
        let outcome = planner.plan(text, &case.registers(), Forms::All);
        let Err(Unplanned::NoStubs(places)) = outcome else { panic!("{outcome:?}") };
        planner.add_stubs(places.near(TEXT).next().expect("a place")).expect("one of the places");
        planner.plan(text, &case.registers(), Forms::All).expect("a plan");
    }
    let mut pages: Vec<_> = planner.stubs().collect();
    pages.sort_unstable_by_key(|page| page.start);
    assert!(pages.windows(2).all(|pair| pair[0].end <= pair[1].start), "{pages:x?}");
}

#[test]
fn stubs_are_nowhere_but_where_a_guest_can_have_memory() {
    let mut planner = Planner::of(Region::DEFAULT);
    assert!(planner.add_stubs(LOWEST).is_some());
    let Range { start, end } = Region::DEFAULT.range();
    let absurd = [0, LOWEST - 4096, LOWEST, LOWEST + STUBS_LEN - 4096, start - 4096, end - 4096, TEXT + 1];
    for at in
        absurd.into_iter().chain([USER_END - STUBS_LEN, USER_END, u64::MAX - STUBS_LEN, u64::MAX - 4095])
    {
        assert_eq!(planner.add_stubs(at), None, "{at:#x}");
    }
    assert_eq!(planner.stubs().len(), 1);
    assert!(
        planner.add_stubs(LOWEST + STUBS_LEN).is_some() && planner.add_stubs(start - STUBS_LEN).is_some()
    );
}

#[test]
fn conditions_are_compared_by_their_meaning() {
    let short = &decode(&[0x75, 0x10], TEXT)[0];
    let near = &decode(&[0x0f, 0x85, 0x0c, 0, 0, 0], TEXT)[0];
    let other = &decode(&[0x0f, 0x84, 0x0c, 0, 0, 0], TEXT)[0];
    assert_eq!(short.condition_code(), ConditionCode::ne);
    assert!(are_alike(short, near) && !are_alike(short, other));
}
