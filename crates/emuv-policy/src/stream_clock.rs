//! When a stream-ordered free has taken effect.
//!
//! `cuMemFreeAsync(p, s)` takes effect when stream `s` comes to it. So each free carries the stream and its
//! number on that stream, and each stream has a clock:
//!
//! ```text
//!   freed   number of frees issued on the stream so far
//!   fenced  frees that the last recorded fence (an event) covers       done <= fenced <= freed
//!   done    frees that are known to have taken effect
//! ```
//!
//! Nothing is recorded on the fast path: a fence is recorded only when somebody else wants what a stream has
//! freed, and covers all its frees until then.

use crate::hash::FastMap;

/// A stream, unique in the process (a driver handle may come again after a stream is destroyed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Who freed something, and as which of its frees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freed {
    /// The stream.
    pub stream: StreamId,
    /// The number of the free on it, from 1.
    pub number: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Clock {
    freed: u64,
    fenced: u64,
    done: u64,
}

/// The clocks of all streams that have freed something.
#[derive(Debug, Default)]
pub struct StreamClocks(FastMap<StreamId, Clock>);

impl StreamClocks {
    /// Counts a free on the stream.
    pub(crate) fn free(&mut self, stream: StreamId) -> Freed {
        let clock = self.0.entry(stream).or_default();
        clock.freed += 1;
        Freed { stream, number: clock.freed }
    }

    /// Whether a free has taken effect, as far as is known.
    pub(crate) fn is_done(&self, freed: Freed) -> bool {
        self.0.get(&freed.stream).is_none_or(|clock| freed.number <= clock.done)
    }

    fn clock(&self, stream: StreamId) -> Clock {
        self.0.get(&stream).copied().unwrap_or_default()
    }

    /// How many frees the stream has issued: taken before waiting for it (or before recording a fence on it),
    /// given to [`Self::settled`] (or [`Self::fence_recorded`]) after.
    pub fn freed(&self, stream: StreamId) -> u64 {
        self.clock(stream).freed
    }

    /// How many of the stream's frees its last fence covers: taken before asking whether the fence has been
    /// reached, given to [`Self::settled`] if it has.
    pub fn fenced(&self, stream: StreamId) -> u64 {
        self.clock(stream).fenced
    }

    /// Whether a stream has freed something that no fence covers yet.
    pub fn wants_fence(&self, stream: StreamId) -> bool {
        let clock = self.clock(stream);
        clock.fenced < clock.freed
    }

    /// Whether a fence on the stream has been recorded and is not known to have been reached.
    pub fn awaits_fence(&self, stream: StreamId) -> bool {
        let clock = self.clock(stream);
        clock.done < clock.fenced
    }

    /// A fence was recorded on the stream; it covers at least the first `number` frees.
    pub fn fence_recorded(&mut self, stream: StreamId, number: u64) {
        if let Some(clock) = self.0.get_mut(&stream) {
            clock.fenced = clock.fenced.max(number.min(clock.freed));
        }
    }

    /// The first `number` frees of the stream have taken effect.
    pub fn settled(&mut self, stream: StreamId, number: u64) {
        if let Some(clock) = self.0.get_mut(&stream) {
            clock.done = clock.done.max(number.min(clock.freed));
            clock.fenced = clock.fenced.max(clock.done);
        }
    }

    /// Streams that have freed something which is not known to have taken effect.
    pub fn unsettled(&self) -> Vec<StreamId> {
        let waiting = self.0.iter().filter(|(_, clock)| clock.done < clock.freed);
        let mut streams: Vec<StreamId> = waiting.map(|(stream, _)| *stream).collect();
        streams.sort_unstable();
        streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StreamId = StreamId(10);

    #[test]
    fn a_fence_covers_only_the_frees_before_it() {
        let mut clocks = StreamClocks::default();
        let first = clocks.free(A);
        clocks.fence_recorded(A, clocks.freed(A));
        let second = clocks.free(A);
        let covered = clocks.fenced(A);
        assert!(clocks.awaits_fence(A) && !clocks.is_done(first));
        clocks.settled(A, covered);
        assert!(clocks.is_done(first) && !clocks.is_done(second));
        assert!(clocks.wants_fence(A) && !clocks.awaits_fence(A));
        assert_eq!(clocks.unsettled(), [A]);
    }

    #[test]
    fn waiting_for_the_stream_needs_no_fence() {
        let mut clocks = StreamClocks::default();
        let first = clocks.free(A);
        let number = clocks.freed(A);
        let second = clocks.free(A);
        clocks.settled(A, number);
        assert!(clocks.is_done(first) && !clocks.is_done(second));
        clocks.settled(A, 99);
        assert!(clocks.is_done(second) && clocks.unsettled().is_empty());
    }
}
