//! What stands in for permessage-deflate when the crate is built without it: nothing can be agreed
//! on, so none of this is ever called.

use super::event::Violation;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {}

impl Agreement {
    pub(crate) fn window_of_one_message(self) -> Option<u8> {
        match self {}
    }
}

pub(crate) enum Contexts {}

pub(super) fn inflate(
    _: &[u8],
    _: usize,
    agreement: Agreement,
    _: &mut Option<Box<Contexts>>,
) -> Result<Vec<u8>, Violation> {
    match agreement {}
}

#[derive(Default)]
pub(super) struct Inflating;

impl Inflating {
    #[expect(clippy::unused_self, reason = "the feature does")]
    pub(super) fn push(
        &mut self,
        _: &[u8],
        _: bool,
        _: &mut Vec<u8>,
        agreement: Agreement,
        _: &mut Option<Box<Contexts>>,
    ) -> Result<(), Violation> {
        match agreement {}
    }
}

pub(crate) fn deflate_alone(_: &[u8], _: &mut Vec<u8>, _: u8, _: u8) -> bool {
    false
}

pub(crate) fn deflate(
    _: &[u8],
    _: &mut Vec<u8>,
    agreement: Agreement,
    _: u8,
    _: &mut Option<Box<Contexts>>,
) -> bool {
    match agreement {}
}
