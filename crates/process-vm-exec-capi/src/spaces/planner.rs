//! Plans of rewritten call sites.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use process_vm_exec::rewriting::{Breakpoint, Forms, Places, Plan, Planner, Text, Unplanned};
use process_vm_exec::{AddressSpace, Errno};

use super::abi::{CPlan, CRegisters};
use super::failure::{Failure, NULL, Outcome, result, status};
use super::memory::{bytes, slice};
use super::space::{space, store};

/// A planner as C has it.
#[derive(Debug)]
pub(super) struct CPlanner {
    planner: Planner,
    last: Last,
}

/// What [`pvx_plan`] came to.
#[derive(Debug)]
enum Last {
    Nothing,
    Planned(Box<Plan>),
    NeedsStubs(Places),
}

const FORMS_ALL: u32 = 0;
const FORMS_BEHIND: u32 = 1;

/// The planner that a pointer of the caller's means.
///
/// # Safety
/// It is null, or one that [`pvx_planner_create`] or [`pvx_planner_clone`] has given and [`pvx_planner_free`] has not been given, which
/// nobody else uses meanwhile.
unsafe fn with<T>(planner: *mut CPlanner, work: impl FnOnce(&mut CPlanner) -> Outcome<T>) -> Outcome<T> {
    // SAFETY: by the contract it is null, or points to a planner that lives and is this function's for now.
    unsafe { planner.as_mut() }.ok_or(NULL).and_then(work)
}

/// Creates a planner for spaces whose region begins at `region`.
///
/// # Safety
/// `created` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_create(region: u64, created: *mut *mut CPlanner) -> c_int {
    // SAFETY: as promised to this function.
    unsafe { store(created, || Ok(CPlanner { planner: Planner::new(region)?, last: Last::Nothing })) }
}

/// Creates a planner that knows what another one knows, for a fork.
///
/// # Safety
/// `original` is a planner that lives, and nobody else uses it; `created` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_clone(original: *mut CPlanner, created: *mut *mut CPlanner) -> c_int {
    // SAFETY: as promised to this function.
    unsafe {
        store(created, || {
            with(original, |original| Ok(CPlanner { planner: original.planner.clone(), last: Last::Nothing }))
        })
    }
}

/// Frees a planner.
///
/// # Safety
/// `freed` is null, or a planner that lives and nobody uses any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_free(freed: *mut CPlanner) {
    if !freed.is_null() {
        // SAFETY: `store` made the box, and by the contract nobody else has it.
        drop(unsafe { Box::from_raw(freed) });
    }
}

/// Plans to rewrite the site of a call that has trapped.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it; `registers` may be read, and `length` bytes at `text`; `plan` may be
/// written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_plan(
    planner: *mut CPlanner,
    registers: *const CRegisters,
    start: u64,
    text: *const c_void,
    length: usize,
    forms: u32,
    plan: *mut CPlan,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { planner, last }| {
            let registers = registers.as_ref().ok_or(NULL)?.registers();
            let (text, plan) = (bytes(text, length)?, NonNull::new(plan).ok_or(NULL)?);
            let forms = match forms {
                FORMS_ALL => Forms::All,
                FORMS_BEHIND => Forms::Behind,
                _ => {
                    let words = "the forms are none of PVX_FORMS_ALL and PVX_FORMS_BEHIND";
                    return Err(Failure::Caller(Errno::INVAL, words));
                }
            };
            *last = Last::Nothing;
            match planner.plan(Text::new(start, text), &registers, forms) {
                Ok(made) => {
                    plan.write(CPlan::try_from(&made)?);
                    *last = Last::Planned(Box::new(made));
                    Ok(())
                }
                Err(Unplanned::NoStubs(places)) => {
                    *last = Last::NeedsStubs(places);
                    let words = "no page of stubs is within reach: add one at one of pvx_planner_places()";
                    Err(Failure::Caller(Errno::AGAIN, words))
                }
                Err(Unplanned::Planned) => {
                    let words = "the call site has a plan: take it back first (pvx_planner_take_back())";
                    Err(Failure::Caller(Errno::EXIST, words))
                }
                Err(_) => Err(Failure::Caller(Errno::NOENT, "the call site cannot be rewritten")),
            }
        })
    };
    status(outcome)
}

/// Where a page of stubs can be, for the site that has just not been planned for want of one. Returns how many there are.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it; `count` values at `places` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_places(
    planner: *mut CPlanner,
    mapping: u64,
    places: *mut u64,
    count: usize,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { last, .. }| {
            let places = slice(places, count)?;
            let Last::NeedsStubs(found) = last else { return Ok(0) };
            let found = places.iter_mut().zip(found.near(mapping)).map(|(place, found)| *place = found);
            Ok(c_int::try_from(found.count()).unwrap_or(c_int::MAX))
        })
    };
    result(outcome, |errno| errno)
}

/// From now on there is a page of stubs at `start`, which has to begin with `first_word`.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it; `first_word` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_add_stubs(
    planner: *mut CPlanner,
    start: u64,
    first_word: *mut u64,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { planner, .. }| {
            let first_word = NonNull::new(first_word).ok_or(NULL)?;
            let words = "a page of stubs is at one of pvx_planner_places()";
            let bytes = planner.add_stubs(start).ok_or(Failure::Caller(Errno::INVAL, words))?;
            first_word.write(u64::from_ne_bytes(bytes));
            Ok(())
        })
    };
    status(outcome)
}

/// The plan that was made last has been applied.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_commit(planner: *mut CPlanner) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { planner, last }| match std::mem::replace(last, Last::Nothing) {
            Last::Planned(plan) => {
                planner.commit(*plan);
                Ok(())
            }
            other => {
                *last = other;
                Err(Failure::Caller(Errno::NOENT, "there is no plan that has not been committed"))
            }
        })
    };
    status(outcome)
}

/// Takes back one of the plans that change something in a range. Returns 1, or 0 if there is none.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it; `plan` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_take_back(
    planner: *mut CPlanner,
    start: u64,
    length: u64,
    plan: *mut CPlan,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { planner, .. }| {
            let plan = NonNull::new(plan).ok_or(NULL)?;
            let range = start..start.saturating_add(length);
            let Some(site) = planner.plans_in(range).map(Plan::site).next() else { return Ok(0) };
            for taken in planner.take_back(|plan| plan.site() == site) {
                plan.write(CPlan::try_from(&taken)?);
            }
            Ok(1)
        })
    };
    result(outcome, |errno| errno)
}

/// Makes registers of a context that has left the guest's what they would be in its own text.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it; `registers` may be read and written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_original(planner: *mut CPlanner, registers: *mut CRegisters) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { planner, .. }| {
            let registers = registers.as_mut().ok_or(NULL)?;
            *registers = (&planner.original(registers.registers())).into();
            Ok(())
        })
    };
    status(outcome)
}

/// Where a context goes that is to go on at `rip`; the same if `planner` is null.
///
/// # Safety
/// `planner` is null, or a planner that lives and nobody else uses.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_present(planner: *mut CPlanner, rip: u64) -> u64 {
    // SAFETY: as promised to this function.
    unsafe { with(planner, |CPlanner { planner, .. }| Ok(planner.present(rip))) }.unwrap_or(rip)
}

/// What an address that a fault tells is about; the same if `planner` is null.
///
/// # Safety
/// `planner` is null, or a planner that lives and nobody else uses.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_original_address(planner: *mut CPlanner, address: u64) -> u64 {
    // SAFETY: as promised to this function.
    unsafe { with(planner, |CPlanner { planner, .. }| Ok(planner.original_address(address))) }
        .unwrap_or(address)
}

/// Whose breakpoint a context has met whose RIP is behind it.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_breakpoint(planner: *mut CPlanner, rip: u64) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { planner, .. }| {
            Ok(match planner.breakpoint(rip) {
                Breakpoint::Unknown => 0,
                Breakpoint::Guests => 1,
                Breakpoint::Planned { .. } => 2,
            })
        })
    };
    result(outcome, |errno| errno)
}

/// Makes bytes of a guest's text its own.
///
/// # Safety
/// `planner` is a planner that lives, and nobody else uses it; `length` bytes at `text` may be read and written.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_planner_undo_in(
    planner: *mut CPlanner,
    start: u64,
    text: *mut c_void,
    length: usize,
) -> c_int {
    // SAFETY: as promised to this function.
    let outcome = unsafe {
        with(planner, |CPlanner { planner, .. }| {
            planner.undo_in(start, slice(text.cast(), length)?);
            Ok(())
        })
    };
    status(outcome)
}

/// No plan is applied in a space any more, for good.
///
/// # Safety
/// `stopped` is a space that lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn pvx_space_stop_plans(stopped: *const AddressSpace) -> c_int {
    // SAFETY: as promised to this function.
    status(unsafe { space(stopped) }.map(|space| space.stop_plans()))
}
