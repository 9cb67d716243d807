//! The room behind `crate::sync` for this test: shuttle's primitives, which hand the choice of who runs next to a
//! scheduler, and a time that passes only where somebody waits for it.
//!
//! A wait with a limit ends by being told, and never by itself, unless [`run_clock`] runs: so a wake-up that the code
//! forgets shows as a deadlock instead of as a delay.

use std::{
    sync::{
        Arc, Mutex as Plain,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shuttle::rand::Rng as _;
pub(crate) use shuttle::{
    sync::{Mutex, MutexGuard, PoisonError, RwLock, atomic},
    thread_local,
};

/// What time it is, in microseconds.
static NOW: AtomicU64 = AtomicU64::new(0);

/// Condition variables that somebody has waited on with a limit.
static LIMITED: Plain<Vec<Arc<shuttle::sync::Condvar>>> = Plain::new(Vec::new());

/// Who locked last ([`lock_soon`]), and how many times in a row.
static LAST: Plain<(usize, u32)> = Plain::new((0, 0));

/// `std::time::Instant` of the test's own time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instant(u64);

impl Instant {
    pub fn now() -> Self {
        Self(NOW.load(Ordering::Relaxed))
    }

    pub fn elapsed(self) -> Duration {
        Duration::from_micros(NOW.load(Ordering::Relaxed) - self.0)
    }
}

/// Lets the others run; time passes.
pub(crate) fn sleep(time: Duration) {
    NOW.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    shuttle::thread::yield_now();
}

/// Locks, and now and then lets the others run: under torture the mover can go on for ever without a call of the driver's, and a
/// scheduler by priorities would let it.
pub(crate) fn lock_soon<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    const MOST_IN_A_ROW: u32 = 256;
    let me = usize::from(shuttle::current::me());
    let in_a_row = {
        let mut last = LAST.lock().expect("not poisoned");
        *last = if last.0 == me && last.1 < MOST_IN_A_ROW { (me, last.1 + 1) } else { (me, 0) };
        last.1
    };
    if in_a_row == MOST_IN_A_ROW {
        shuttle::thread::yield_now();
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new execution: it is midnight, and nobody waits.
pub(crate) fn begin_execution() {
    NOW.store(0, Ordering::Relaxed);
    LIMITED.lock().expect("not poisoned").clear();
    *LAST.lock().expect("not poisoned") = (0, 0);
}

/// Ends waits that have a limit, at random moments (and wakes who waits beside them for nothing, which the standard
/// library's condition variables may do as well), until `over`.
pub(crate) fn run_clock(over: &atomic::AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(1));
        let limited = LIMITED.lock().expect("not poisoned").clone();
        if !limited.is_empty() {
            limited[shuttle::rand::thread_rng().gen_range(0..limited.len())].notify_all();
        }
    }
}

/// `std::sync::Condvar`; see the module's head.
#[derive(Debug, Default)]
pub(crate) struct Condvar(Arc<shuttle::sync::Condvar>);

type Waited<T> = Result<T, PoisonError<T>>;

impl Condvar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> Waited<MutexGuard<'a, T>> {
        self.0.wait(guard)
    }

    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _limit: Duration,
    ) -> Waited<(MutexGuard<'a, T>, shuttle::sync::WaitTimeoutResult)> {
        {
            let mut limited = LIMITED.lock().expect("not poisoned");
            if !limited.iter().any(|known| Arc::ptr_eq(known, &self.0)) {
                limited.push(Arc::clone(&self.0));
            }
        }
        self.0.wait_timeout(guard, Duration::ZERO)
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// `std::sync::OnceLock`, empty again in each execution, also where it is a static. What it held is never dropped.
#[derive(Debug)]
pub(crate) struct OnceLock<T: 'static> {
    once: shuttle::sync::Once,
    value: Plain<Option<&'static T>>,
}

impl<T: Send + Sync + 'static> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Send + Sync + 'static> OnceLock<T> {
    pub const fn new() -> Self {
        Self { once: shuttle::sync::Once::new(), value: Plain::new(None) }
    }

    pub fn get(&self) -> Option<&'static T> {
        if self.once.is_completed() { *self.value.lock().expect("not poisoned") } else { None }
    }

    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &'static T {
        self.once.call_once(|| {
            let made = Box::leak(Box::new(make()));
            *self.value.lock().expect("not poisoned") = Some(made);
        });
        self.get().expect("made above")
    }
}
