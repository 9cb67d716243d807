//! The room behind `crate::thread` for this test.

use std::{cell::RefCell, io};

type Last = Box<dyn FnOnce() + Send>;

std::thread_local! {
    /// What to do when the process ends. All of an execution's threads run on one real one.
    static AT_EXIT: RefCell<Vec<Last>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    shuttle::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

pub(crate) fn at_exit(what: impl FnOnce() + Send + 'static) {
    AT_EXIT.with_borrow_mut(|all| all.push(Box::new(what)));
}

/// A new execution.
pub(crate) fn begin_execution() {
    AT_EXIT.take();
}

/// The process ends normally.
pub(crate) fn process_ends() {
    for what in AT_EXIT.take() {
        what();
    }
}
