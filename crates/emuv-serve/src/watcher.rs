//! Samples for those who ask, and none while nobody does.
//!
//! One thread takes the samples, one after the other. Who asks gets the last one if it is young, else waits for the next;
//! all who wait get the same. A driver that hangs holds that thread and nothing else: those who wait are told so.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use axum::body::Bytes;
use emuv_watch::Snapshot;
use tokio::{sync::watch, time::timeout};

/// A sample younger than this is not taken again: a little less than the second in which pages ask.
const YOUNG: Duration = Duration::from_millis(900);

/// How long a sample may take before those who wait for it are told.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Takes a sample now.
pub type Sample = Box<dyn FnMut() -> Snapshot + Send>;

/// A sample, and what it cost.
#[derive(Debug)]
pub struct Shot {
    /// What was seen.
    pub snapshot: Snapshot,
    /// How long it took to see.
    pub took: Duration,
    begun: Instant,
    json: OnceLock<Bytes>,
}

impl Shot {
    /// The snapshot as JSON; made once, for all who ask.
    pub fn json(&self) -> Bytes {
        self.json.get_or_init(|| crate::routes::json(&self.snapshot)).clone()
    }
}

/// Why there is no sample. Each reads as one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoShot {
    /// It takes too long.
    Slow,
    /// The thread has ended, which is a mistake of ours.
    Ended,
}

impl std::fmt::Display for NoShot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slow => write!(f, "a look at GPUs and programs takes more than {} s", PATIENCE.as_secs()),
            Self::Ended => f.write_str("nothing looks at GPUs and programs any more; restart emuv serve"),
        }
    }
}

/// Where samples are had from.
#[derive(Debug, Clone)]
pub struct Watcher {
    asks: SyncSender<()>,
    latest: watch::Receiver<Option<Arc<Shot>>>,
    patience: Duration,
}

impl Watcher {
    /// Starts the thread. Nobody waits longer than `patience` for a sample.
    ///
    /// # Errors
    /// The system's own.
    pub fn start(mut sample: Sample, patience: Duration) -> io::Result<Self> {
        let (asks, asked) = sync_channel(1);
        let (sender, latest) = watch::channel(None);
        thread::Builder::new().name("sampler".to_owned()).spawn(move || {
            for () in asked {
                let begun = Instant::now();
                let snapshot = sample();
                let shot = Shot { snapshot, took: begun.elapsed(), begun, json: OnceLock::new() };
                sender.send_replace(Some(Arc::new(shot)));
            }
        })?;
        Ok(Self { asks, latest, patience })
    }

    /// A young sample.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn shot(&self) -> Result<Arc<Shot>, NoShot> {
        let mut latest = self.latest.clone();
        let last = latest.borrow_and_update().clone();
        if let Some(shot) = last.filter(|shot| shot.begun.elapsed() < YOUNG) {
            return Ok(shot);
        }
        // If it is full, somebody has asked already.
        let _ = self.asks.try_send(());
        match timeout(self.patience, latest.changed()).await {
            Ok(Ok(())) => latest.borrow().clone().ok_or(NoShot::Ended),
            Ok(Err(_)) => Err(NoShot::Ended),
            Err(_) => Err(NoShot::Slow),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn all_who_ask_at_once_get_one_sample_and_without_asking_there_is_none() {
        let taken = Arc::new(AtomicU64::new(0));
        let sample: Sample = Box::new({
            let taken = Arc::clone(&taken);
            move || Snapshot { time_unix_millis: taken.fetch_add(1, Relaxed), ..Snapshot::default() }
        });
        let watcher = Watcher::start(sample, PATIENCE).unwrap();
        assert_eq!(taken.load(Relaxed), 0);
        runtime().block_on(async {
            let (one, two) = tokio::join!(watcher.shot(), watcher.shot());
            assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
        });
        assert_eq!(taken.load(Relaxed), 1);
    }

    #[test]
    fn a_sampler_that_has_died_is_told_and_not_waited_for() {
        let watcher = Watcher::start(Box::new(|| panic!("on purpose")), PATIENCE).unwrap();
        runtime().block_on(async {
            assert_eq!(watcher.shot().await.unwrap_err(), NoShot::Ended);
            assert_eq!(watcher.shot().await.unwrap_err(), NoShot::Ended);
        });
    }

    #[test]
    fn a_driver_that_hangs_is_told_to_whoever_has_waited_long_enough() {
        let hang: Sample = Box::new(|| {
            loop {
                thread::park();
            }
        });
        let watcher = Watcher::start(hang, Duration::ZERO).unwrap();
        assert_eq!(runtime().block_on(watcher.shot()).unwrap_err(), NoShot::Slow);
    }
}
