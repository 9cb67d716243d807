//! Order between operations, events, and contexts that end.

use std::sync::{Arc, Mutex, mpsc};

use emuv_cuda::CUresult;

use super::{Argument::*, Rig};
use crate::{
    stream::{event::Event, queue::Op, set::Stream},
    sync::lock,
};

/// Names of operations in the order in which they ran.
type Log = Arc<Mutex<Vec<&'static str>>>;

fn note(rig: &Rig, stream: &Stream, log: &Log, name: &'static str) {
    let log = Arc::clone(log);
    rig.context.streams.submit(stream, Op::always(move |_| lock(&log).push(name))).unwrap();
}

/// Holds a stream up until the sender is used or dropped.
fn hold(rig: &Rig, stream: &Stream) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel();
    let op = Op::always(move |_| {
        // Being dropped also lets the stream go on.
        let _ = receiver.recv();
    });
    rig.context.streams.submit(stream, op).unwrap();
    sender
}

#[test]
fn a_stream_keeps_its_order() {
    let rig = Rig::new("vram=64M");
    let (stream, log) = (rig.context.streams.create(1, 0), Log::default());
    for name in ["a", "b", "c"] {
        note(&rig, &stream, &log, name);
    }
    rig.context.synchronize().unwrap();
    assert_eq!(*lock(&log), ["a", "b", "c"]);
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    let rig = Rig::new("vram=64M");
    let streams = &rig.context.streams;
    let (blocking, other, legacy) = (streams.create(0, 0), streams.create(0, 0), streams.legacy());
    let log = Log::default();
    let gate = hold(&rig, &blocking);
    note(&rig, &blocking, &log, "before");
    note(&rig, &legacy, &log, "legacy");
    note(&rig, &other, &log, "after");
    assert!(lock(&log).is_empty());
    drop(gate);
    rig.context.synchronize().unwrap();
    assert_eq!(*lock(&log), ["before", "legacy", "after"]);
}

#[test]
fn a_non_blocking_stream_does_not_wait_for_the_legacy_stream() {
    let rig = Rig::new("vram=64M");
    let streams = &rig.context.streams;
    let free = streams.create(1, 0);
    let gate = hold(&rig, &streams.legacy());
    // Would never end if it waited.
    streams.submit(&free, Op::always(|_| {})).unwrap().wait();
    assert!(!streams.unfinished(&streams.legacy()).is_empty());
    drop(gate);
}

#[test]
fn a_per_thread_stream_belongs_to_its_thread() {
    let rig = Rig::new("vram=64M");
    let streams = &rig.context.streams;
    let mine = streams.per_thread();
    assert_eq!(mine.id, streams.per_thread().id);
    let theirs = std::thread::scope(|scope| scope.spawn(|| streams.per_thread().id).join().unwrap());
    assert_ne!(mine.id, theirs);
}

#[test]
fn an_event_is_reached_when_its_stream_gets_there() {
    let rig = Rig::new("vram=64M");
    let streams = &rig.context.streams;
    let (stream, waiting) = (streams.create(1, 0), streams.create(1, 0));
    let event = || Event::new(Arc::clone(&rig.context.engine), true);
    let (start, end) = (event(), event());
    assert!(end.is_done(), "never recorded");
    assert_eq!(start.elapsed_ms(&end).unwrap_err().code(), CUresult::CUDA_ERROR_INVALID_HANDLE);
    streams.record(&stream, &start).unwrap();
    let gate = hold(&rig, &stream);
    streams.record(&stream, &end).unwrap();
    assert!(!end.is_done());
    assert_eq!(start.elapsed_ms(&end).unwrap_err().code(), CUresult::CUDA_ERROR_NOT_READY);
    let log = Log::default();
    let op = Op { after: vec![end.record().unwrap().ticket], ..Op::always(|_| {}) };
    streams.submit(&waiting, op).unwrap();
    note(&rig, &waiting, &log, "after the event");
    assert!(lock(&log).is_empty());
    drop(gate);
    end.wait();
    rig.context.synchronize().unwrap();
    assert_eq!(lock(&log).len(), 1);
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
}

#[test]
fn after_an_error_work_is_skipped_and_bookkeeping_is_not() {
    let rig = Rig::new("vram=64M");
    let (stream, target) = (rig.context.streams.create(1, 0), rig.allocate(64));
    rig.write(target, &[5]);
    let gate = hold(&rig, &stream);
    rig.launch(&stream, "emuv_fill", &[Word(4096), Word(1), Half(0)]);
    rig.launch(&stream, "emuv_fill", &[Word(target), Word(1), Half(0)]);
    let (sender, receiver) = mpsc::channel();
    rig.context.streams.submit(&stream, Op::always(move |status| sender.send(status).unwrap())).unwrap();
    drop(gate);
    assert_eq!(receiver.recv().unwrap(), CUresult::ILLEGAL_ADDRESS);
    assert_eq!(rig.read(target, 1), [5]);
}

#[test]
fn a_panic_inside_an_operation_is_a_failed_launch() {
    let rig = Rig::new("vram=64M");
    let stream = rig.context.streams.create(1, 0);
    rig.context.streams.submit(&stream, Op::device(|_| panic!("on purpose"))).unwrap();
    assert_eq!(rig.context.synchronize().unwrap_err().code(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
}

#[test]
fn ending_a_context_stops_a_kernel_that_would_never_end() {
    let rig = Rig::new("vram=64M");
    let cell = rig.allocate(64);
    rig.write(cell, &[u32::try_from(cell & 0xffff_ffff).unwrap(), u32::try_from(cell >> 32).unwrap()]);
    let stream = rig.context.streams.create(1, 0);
    rig.launch(&stream, "emuv_chase", &[Word(cell), Word(cell), Word(u64::MAX)]);
    rig.simulator.end_context(&rig.context);
    assert_eq!(rig.used(), emuv_policy::Bytes::ZERO);
}

#[test]
fn a_primary_context_keeps_its_handle_over_a_reset() {
    let rig = Rig::new("vram=64M");
    let device = rig.simulator.device(0).unwrap();
    let handle = rig.simulator.retain_primary(device);
    rig.simulator.contexts.get(handle).unwrap().engine.status.fail(CUresult::ILLEGAL_ADDRESS);
    rig.simulator.reset_primary(device);
    assert!(rig.simulator.contexts.get(handle).is_none());
    assert_eq!(rig.simulator.retain_primary(device), handle);
    rig.simulator.contexts.get(handle).unwrap().synchronize().unwrap();
    rig.simulator.release_primary(device).unwrap();
    rig.simulator.release_primary(device).unwrap();
    assert!(rig.simulator.release_primary(device).is_err());
    assert!(rig.simulator.contexts.get(handle).is_none());
}
