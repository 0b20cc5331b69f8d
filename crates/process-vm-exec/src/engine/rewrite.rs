//! stub
use std::ops::Range;
use crate::context::Context;
use crate::error::Result;
use crate::executor::service::Service;
use crate::exit::{Arch, Fault};
use crate::space::Inner;
#[derive(Debug, Default)]
pub(crate) struct Rewriter;
impl Rewriter {
    pub(crate) fn after_trap(&self, _s: &Inner, _c: &mut Context, _a: Arch) {}
    pub(crate) fn caused(&self, _s: &Inner, _c: &mut Context, _f: &Fault) -> bool { false }
    pub(crate) fn settle(&self, _c: &mut Context) {}
    pub(crate) fn before_change(&self, _s: &Inner, _r: Range<u64>) -> Result<()> { Ok(()) }
    pub(crate) fn fork(&self, f: impl FnOnce() -> Result<Service>) -> Result<(Service, Self)> { Ok((f()?, Self)) }
}
pub(crate) fn lacks() -> Option<String> { None }
