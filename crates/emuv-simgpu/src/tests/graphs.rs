//! Graphs, their executables, and captures, without the C interface.

use std::sync::{Arc, Mutex};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED,
        CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    },
};

use crate::{
    graph::{
        Graph, Graphs,
        capture::{Captures, Member},
        executable::Executable,
        step::Step,
    },
    stream::set::Stream,
    sync::lock,
    tests::Rig,
};

type Log = Arc<Mutex<Vec<&'static str>>>;

fn note(log: &Log, name: &'static str) -> Step {
    let log = Arc::clone(log);
    Step::Host(Box::new(move || lock(&log).push(name)))
}

fn member(stream: u64) -> Member {
    Member { stream, context: 7, is_blocking: false }
}

fn begin(graphs: &Graphs, stream: u64, mode: u32) -> Arc<Graph> {
    let graph = graphs.create();
    graphs.captures.begin(member(stream), mode, (Arc::clone(&graph), false), Vec::new()).unwrap();
    graph
}

fn add(graphs: &Graphs, stream: u64) {
    assert!(graphs.captures.add(graphs, stream, Step::Empty).unwrap().is_none(), "stream {stream} is captured");
}

fn code<T: std::fmt::Debug>(outcome: CuResult<T>) -> CUresult {
    outcome.unwrap_err().code()
}

fn launch(rig: &Rig, stream: &Stream, executable: &Executable) {
    executable.launch(|op| rig.context.streams.submit(stream, op)).unwrap();
}

#[test]
fn a_launch_follows_the_dependencies_whatever_the_order_of_adding() {
    let rig = Rig::new("vram=64M,jitter_us=20,seed=3");
    let (graphs, log) = (Graphs::default(), Log::default());
    let graph = graphs.create();
    let last = graphs.add(&graph, &[], note(&log, "last")).unwrap();
    let middle = graphs.add(&graph, &[], note(&log, "middle")).unwrap();
    let first = graphs.add(&graph, &[], note(&log, "first")).unwrap();
    graphs.connect(&graph, middle, last).unwrap();
    graphs.connect(&graph, first, middle).unwrap();
    let executable = Executable::new(&graph, 0).unwrap();
    graphs.destroy(graph.handle).unwrap();
    // On two streams: launches of one executable follow each other.
    let (a, b) = (rig.context.streams.create(1, 0), rig.context.streams.create(1, 0));
    launch(&rig, &a, &executable);
    launch(&rig, &b, &executable);
    rig.context.synchronize().unwrap();
    assert_eq!(*lock(&log), ["first", "middle", "last", "first", "middle", "last"]);
}

#[test]
fn a_ring_cannot_be_launched_and_a_foreign_or_double_dependency_is_refused() {
    let graphs = Graphs::default();
    let (graph, other) = (graphs.create(), graphs.create());
    let a = graphs.add(&graph, &[], Step::Empty).unwrap();
    let b = graphs.add(&graph, &[a], Step::Empty).unwrap();
    assert_eq!(code(graphs.add(&other, &[a], Step::Empty)), CUresult::INVALID_VALUE);
    assert_eq!(code(graphs.add(&graph, &[a, a], Step::Empty)), CUresult::INVALID_VALUE);
    assert_eq!(code(graphs.connect(&graph, a, b)), CUresult::INVALID_VALUE);
    graphs.connect(&graph, b, a).unwrap();
    assert_eq!(code(Executable::new(&graph, 0)), CUresult::INVALID_VALUE);
}

#[test]
fn a_clone_is_changed_by_itself_and_knows_its_originals() {
    let rig = Rig::new("vram=64M");
    let (graphs, log) = (Graphs::default(), Log::default());
    let graph = graphs.create();
    let node = graphs.add(&graph, &[], note(&log, "original")).unwrap();
    let copy = graphs.copy(&graph).unwrap();
    let copied = copy.nodes().into_iter().find(|other| other.original == Some(node)).unwrap();
    copied.set(note(&log, "copy")).unwrap();
    assert_eq!(code(copied.set(Step::Empty)), CUresult::INVALID_VALUE);
    let stream = rig.context.streams.create(1, 0);
    for graph in [graph, copy] {
        launch(&rig, &stream, &Executable::new(&graph, 0).unwrap());
    }
    rig.context.synchronize().unwrap();
    assert_eq!(*lock(&log), ["original", "copy"]);
}

#[test]
fn an_executable_takes_over_a_graph_of_the_same_form_only() {
    let rig = Rig::new("vram=64M");
    let (graphs, log) = (Graphs::default(), Log::default());
    let pair = |first, second: Option<&'static str>, chained: bool| {
        let graph = graphs.create();
        let a = graphs.add(&graph, &[], note(&log, first)).unwrap();
        let after: &[u64] = if chained { &[a] } else { &[] };
        graphs.add(&graph, after, second.map_or(Step::Empty, |name| note(&log, name))).unwrap();
        graph
    };
    let executable = Executable::new(&pair("a", Some("b"), true), 0).unwrap();
    let refused = |graph: &Graph| executable.update(graph).unwrap().unwrap_err().0;
    assert_eq!(refused(&pair("c", Some("d"), false)), CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
    assert_eq!(refused(&pair("c", None, true)), CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED);
    let stream = rig.context.streams.create(1, 0);
    launch(&rig, &stream, &executable);
    assert_eq!(executable.update(&pair("c", Some("d"), true)), Ok(Ok(())));
    launch(&rig, &stream, &executable);
    rig.context.synchronize().unwrap();
    assert_eq!(*lock(&log), ["a", "b", "c", "d"]);
}

#[test]
fn a_capture_spreads_over_events_and_must_come_back() {
    let graphs = Graphs::default();
    let captures = &graphs.captures;
    let graph = begin(&graphs, 1, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    add(&graphs, 1);
    captures.join(member(2), &captures.mark(1).unwrap().unwrap()).unwrap();
    add(&graphs, 2);
    add(&graphs, 1);
    assert_eq!(code(captures.end(&graphs, 2)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    captures.join(member(1), &captures.mark(2).unwrap().unwrap()).unwrap();
    add(&graphs, 1);
    assert_eq!(captures.end(&graphs, 1).unwrap().handle, graph.handle);
    let ordered: Vec<usize> = graph.nodes().iter().map(|node| node.dependencies().len()).collect();
    assert_eq!(ordered, [0, 1, 1, 2]);
    assert!(!captures.includes(1) && !captures.includes(2));

    begin(&graphs, 1, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    captures.join(member(2), &captures.mark(1).unwrap().unwrap()).unwrap();
    add(&graphs, 2);
    let lost = captures.mark(2).unwrap().unwrap();
    assert_eq!(code(captures.end(&graphs, 1)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    assert_eq!(code(captures.join(member(3), &lost)), CUresult::CUDA_ERROR_CAPTURED_EVENT);
}

#[test]
fn a_forbidden_call_spoils_the_capture_until_it_ends() {
    let graphs = Graphs::default();
    let captures: &Captures = &graphs.captures;
    let graph = begin(&graphs, 1, CU_STREAM_CAPTURE_MODE_GLOBAL);
    assert_eq!(code(captures.forbid_unsafe()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert!(captures.info(1).unwrap().is_invalid);
    let refused = captures.add(&graphs, 1, Step::Empty);
    assert_eq!(code(refused), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_eq!(code(captures.end(&graphs, 1)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_eq!(code(graphs.graph(graph.handle)), CUresult::INVALID_VALUE);
    captures.forbid_unsafe().unwrap();
}

#[test]
fn whom_a_capture_forbids_what_depends_on_its_mode() {
    let outcome = |mode, elsewhere: bool| {
        let graphs = Graphs::default();
        begin(&graphs, 1, mode);
        let attempt = || graphs.captures.forbid_unsafe().is_ok();
        if elsewhere { std::thread::scope(|scope| scope.spawn(attempt).join().unwrap()) } else { attempt() }
    };
    let modes = [CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_RELAXED];
    assert_eq!(modes.map(|mode| outcome(mode, false)), [false, false, true]);
    assert_eq!(modes.map(|mode| outcome(mode, true)), [false, true, true]);
}

#[test]
fn the_legacy_stream_cannot_be_used_while_a_stream_that_waits_for_it_is_captured() {
    let graphs = Graphs::default();
    let blocking = Member { is_blocking: true, ..member(1) };
    graphs.captures.begin(blocking, CU_STREAM_CAPTURE_MODE_RELAXED, (graphs.create(), false), Vec::new()).unwrap();
    graphs.captures.forbid_on(member(9), false).unwrap();
    let refused = graphs.captures.forbid_on(member(9), true);
    assert_eq!(code(refused), CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
}
