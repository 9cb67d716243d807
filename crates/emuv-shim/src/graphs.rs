//! What executable graphs may touch. A launch of one shows no arguments, so its nodes are looked at when it is made
//! or changed, and every word that may be a pointer is kept.
//!
//! # Safety
//! Each block is one driver call whose out-pointers are live locals and whose handles the program or the driver has
//! given, or reads what such a call has described: the descriptions belong to nodes of a graph that the program is
//! handing to the driver at this moment, so they stay as they are.
#![allow(unsafe_code)]

use core::ffi::{c_uint, c_void};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use emuv_cuda::{CuResult, types::*};

use crate::{
    entry::{memset, transfer},
    functions::Sum,
    session::Session,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    touch::Touch,
};

/// No address is smaller or larger than these; most of a kernel's other arguments are.
const LEAST_ADDRESS: u64 = 1 << 16;
const MOST_ADDRESS: u64 = 1 << 57;

/// What nodes of a graph may touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// What may be an address: of an arena, or of memory of the host that becomes reachable later.
    words: BTreeSet<u64>,
    /// A node cannot be read.
    everything: bool,
    /// Every launch may bring pointers from memory that is not searched.
    brings_pointers: bool,
    /// Addresses of copies and memsets: the driver looks at what lies there.
    copied: BTreeSet<u64>,
}

/// See the module's head. One per process.
#[derive(Debug, Default)]
pub(crate) struct Graphs {
    known: RwLock<HashMap<usize, Graph>>,
    /// A kernel of one graph may launch another graph, of which the first one's nodes show nothing.
    launched_by_kernels: AtomicBool,
}

#[derive(Debug, Clone, Default)]
struct Graph {
    reach: Arc<Reach>,
    launches: Arc<AtomicU32>,
}

impl Reach {
    /// Of nodes that cannot be read.
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Of one address, of a memset.
    pub fn of_address(address: u64) -> Self {
        let mut reach = Self { copied: BTreeSet::from([address]), ..Self::default() };
        reach.word(address);
        reach
    }

    /// Addresses that the driver looks at when it makes or changes an executable graph.
    pub fn copied(&self) -> Vec<u64> {
        self.copied.iter().copied().collect()
    }

    /// Of a kernel with these arguments.
    ///
    /// # Safety
    /// `kernel_params` and `extra` are as for `cuLaunchKernel` of this function.
    pub unsafe fn of_kernel(
        session: &Session,
        function: CUfunction,
        kernel_params: *const *mut c_void,
        extra: *const *mut c_void,
    ) -> Self {
        let mut reach = Self::default();
        let each = |word| reach.word(word);
        // SAFETY: the caller's word.
        let readable = unsafe { session.functions.words(session.real, function, kernel_params, extra, each) };
        reach.everything |= !readable;
        reach
    }

    /// Of a copy.
    pub fn of_copy(session: &Session, copy: &CUDA_MEMCPY3D) -> Self {
        let mut reach = Self::default();
        let named = [copy.srcDevice, copy.dstDevice, copy.srcHost as u64, copy.dstHost as u64];
        named.iter().for_each(|word| reach.word(*word));
        reach.copied = BTreeSet::from(named);
        reach.brings_pointers = !transfer::is_searched(session, copy.srcMemoryType, copy.srcDevice);
        reach
    }

    /// Of operations on memory.
    ///
    /// # Safety
    /// The array is null or has `count` elements.
    pub unsafe fn of_operations(operations: *const CUstreamBatchMemOpParams, count: c_uint) -> Self {
        let mut reach = Self { brings_pointers: true, ..Self::default() };
        // SAFETY: the caller's word.
        let readable = unsafe { memset::operands(operations, count, |address| reach.word(address)) };
        reach.everything |= !readable;
        reach
    }

    /// Of a node of a kind that has no arguments to be read.
    pub fn of_other(kind: CUgraphNodeType) -> Self {
        match kind {
            CU_GRAPH_NODE_TYPE_HOST
            | CU_GRAPH_NODE_TYPE_EMPTY
            | CU_GRAPH_NODE_TYPE_WAIT_EVENT
            | CU_GRAPH_NODE_TYPE_EVENT_RECORD
            | CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL
            | CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT
            // Memory of the driver's own; what uses it says so.
            | CU_GRAPH_NODE_TYPE_MEM_ALLOC
            | CU_GRAPH_NODE_TYPE_MEM_FREE => Self::default(),
            // Conditional bodies, batches of copies, and what newer drivers know.
            _ => Self::everything(),
        }
    }

    fn word(&mut self, word: u64) {
        if (LEAST_ADDRESS..MOST_ADDRESS).contains(&word) {
            self.words.insert(word);
        }
    }

    fn join(&mut self, other: Self) {
        self.words.extend(other.words);
        self.copied.extend(other.copied);
        self.everything |= other.everything;
        self.brings_pointers |= other.brings_pointers;
    }

    /// What a launch may touch, the `launch`th of the executable graph.
    fn touch(&self, exec: usize, launch: u32, mut look_at: impl FnMut(&mut Touch, u64)) -> Touch {
        let mut touch = Touch::nothing();
        let mut sum = Sum::new();
        sum.add(exec as u64);
        touch.kind = sum.end();
        touch.maker = exec as u64;
        for word in &self.words {
            look_at(&mut touch, *word);
        }
        touch.everything |= self.everything;
        touch.may_store_pointers = touch.everything || launch.is_power_of_two();
        if self.brings_pointers {
            touch.brings_pointers();
        }
        touch
    }
}

impl Graphs {
    /// A graph has been made executable; kernels of other graphs may launch it `by_kernels`.
    pub fn add(&self, exec: CUgraphExec, reach: Reach, by_kernels: bool) {
        if by_kernels {
            self.launched_by_kernels.store(true, Ordering::Release);
        }
        let graph = Graph { reach: Arc::new(reach), ..Graph::default() };
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(exec as usize, graph);
    }

    /// It may touch this as well from now on.
    pub fn widen(&self, exec: CUgraphExec, reach: Reach) {
        if let Some(graph) = self.known.write().unwrap_or_else(PoisonError::into_inner).get_mut(&(exec as usize)) {
            Arc::make_mut(&mut graph.reach).join(reach);
        }
    }

    /// It touches this and nothing else from now on.
    pub fn replace(&self, exec: CUgraphExec, reach: Reach) {
        if let Some(graph) = self.known.write().unwrap_or_else(PoisonError::into_inner).get_mut(&(exec as usize)) {
            graph.reach = Arc::new(reach);
        }
    }

    /// Addresses of its copies and memsets: the driver looks at what lies there also when it changes the graph.
    pub fn copied(&self, exec: CUgraphExec) -> Vec<u64> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(exec as usize)).map_or_else(Vec::new, |graph| graph.reach.copied())
    }

    /// It is gone.
    pub fn forget(&self, exec: CUgraphExec) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&(exec as usize));
    }

    /// What a launch of the graph may touch.
    pub fn touch(&self, session: &Session, exec: CUgraphExec) -> Touch {
        self.touch_by(exec, Touch::looker(session))
    }

    fn touch_by(&self, exec: CUgraphExec, look_at: impl FnMut(&mut Touch, u64)) -> Touch {
        let key = exec as usize;
        let graph = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let Some(graph) = graph.filter(|_| !self.launched_by_kernels.load(Ordering::Acquire)) else {
            return Touch::everything();
        };
        let launch = graph.launches.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        graph.reach.touch(key, launch, look_at)
    }
}

/// What the nodes of a graph may touch, with the graphs in it.
pub(crate) fn read(session: &Session, graph: CUgraph) -> Reach {
    let mut reach = Reach::default();
    match nodes(session, graph) {
        Ok(nodes) => {
            for node in nodes {
                reach.join(read_node(session, node).unwrap_or_else(|_| Reach::everything()));
            }
        }
        Err(_) => reach.everything = true,
    }
    reach
}

fn nodes(session: &Session, graph: CUgraph) -> CuResult<Vec<CUgraphNode>> {
    let driver = &session.real.driver;
    let mut count = 0;
    // SAFETY: see the module's head; without an array the driver gives their number.
    unsafe { driver.cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut count) }.ok()?;
    let mut nodes = vec![std::ptr::null_mut(); count];
    if count > 0 {
        // SAFETY: see the module's head; the array has room for as many as `count` says.
        unsafe { driver.cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut count) }.ok()?;
        nodes.truncate(count);
    }
    Ok(nodes)
}

fn kind_of(session: &Session, node: CUgraphNode) -> CuResult<CUgraphNodeType> {
    let mut kind = CU_GRAPH_NODE_TYPE_EMPTY;
    // SAFETY: see the module's head.
    unsafe { session.real.driver.cuGraphNodeGetType(node, &raw mut kind) }.ok()?;
    Ok(kind)
}

fn copy_of(session: &Session, node: CUgraphNode) -> CuResult<CUDA_MEMCPY3D> {
    // SAFETY: a plain description, for which zeros are valid.
    let mut copy: CUDA_MEMCPY3D = unsafe { std::mem::zeroed() };
    // SAFETY: see the module's head.
    unsafe { session.real.driver.cuGraphMemcpyNodeGetParams(node, &raw mut copy) }.ok()?;
    Ok(copy)
}

fn child_of(session: &Session, node: CUgraphNode) -> CuResult<CUgraph> {
    let mut graph = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { session.real.driver.cuGraphChildGraphNodeGetGraph(node, &raw mut graph) }.ok()?;
    Ok(graph)
}

fn read_node(session: &Session, node: CUgraphNode) -> CuResult<Reach> {
    let driver = &session.real.driver;
    match kind_of(session, node)? {
        CU_GRAPH_NODE_TYPE_KERNEL => read_kernel(session, node),
        CU_GRAPH_NODE_TYPE_MEMCPY => Ok(Reach::of_copy(session, &copy_of(session, node)?)),
        CU_GRAPH_NODE_TYPE_MEMSET => {
            // SAFETY: a plain description, for which zeros are valid.
            let mut set: CUDA_MEMSET_NODE_PARAMS = unsafe { std::mem::zeroed() };
            // SAFETY: see the module's head.
            unsafe { driver.cuGraphMemsetNodeGetParams(node, &raw mut set) }.ok()?;
            Ok(Reach::of_address(set.dst))
        }
        CU_GRAPH_NODE_TYPE_BATCH_MEM_OP => {
            // SAFETY: a plain description, for which zeros are valid.
            let mut batch: CUDA_BATCH_MEM_OP_NODE_PARAMS = unsafe { std::mem::zeroed() };
            // SAFETY: see the module's head.
            unsafe { driver.cuGraphBatchMemOpNodeGetParams(node, &raw mut batch) }.ok()?;
            session.host_ranges.changes_later();
            // SAFETY: see the module's head: the array is the node's.
            Ok(unsafe { Reach::of_operations(batch.paramArray, batch.count) })
        }
        CU_GRAPH_NODE_TYPE_GRAPH => Ok(read(session, child_of(session, node)?)),
        kind => {
            // Such nodes let the host write between a launch of the graph and the turn of what is behind them.
            if matches!(kind, CU_GRAPH_NODE_TYPE_HOST | CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT) {
                session.host_ranges.changes_later();
            }
            Ok(Reach::of_other(kind))
        }
    }
}

/// Has the driver look again at what lies at the addresses of a graph's copies, where that may be emuV's. A node that refuses
/// is left as it is: the call that follows says what is wrong with it.
pub(crate) fn describe_copies_again(session: &Session, graph: CUgraph) {
    for node in nodes(session, graph).unwrap_or_default() {
        let _ = describe_again(session, node);
    }
}

fn describe_again(session: &Session, node: CUgraphNode) -> CuResult {
    match kind_of(session, node)? {
        CU_GRAPH_NODE_TYPE_MEMCPY => {
            let copy = copy_of(session, node)?;
            if session.device_at(copy.srcDevice).or_else(|| session.device_at(copy.dstDevice)).is_some() {
                // SAFETY: see the module's head; the node's own description.
                unsafe { session.real.driver.cuGraphMemcpyNodeSetParams(node, &raw const copy) }.ok()?;
            }
        }
        CU_GRAPH_NODE_TYPE_GRAPH => describe_copies_again(session, child_of(session, node)?),
        _ => {}
    }
    Ok(())
}

fn read_kernel(session: &Session, node: CUgraphNode) -> CuResult<Reach> {
    let driver = &session.real.driver;
    // SAFETY: a plain description, for which zeros are valid.
    let mut kernel: CUDA_KERNEL_NODE_PARAMS_v2 = unsafe { std::mem::zeroed() };
    // SAFETY: see the module's head. Drivers before 12.0 fail here, and the node counts as unreadable.
    unsafe { driver.cuGraphKernelNodeGetParams_v2(node, &raw mut kernel) }.ok()?;
    let function = if kernel.func.is_null() { kernel.kern.cast() } else { kernel.func };
    // SAFETY: see the module's head: the arguments are the node's.
    let mut reach = unsafe { Reach::of_kernel(session, function, kernel.kernelParams, kernel.extra) };
    // Kernels can give a node that allows it other arguments, which nothing here sees.
    // SAFETY: a plain value, for which zeros are valid.
    let mut value: CUkernelNodeAttrValue = unsafe { std::mem::zeroed() };
    let which = CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE;
    // SAFETY: see the module's head.
    if unsafe { driver.cuGraphKernelNodeGetAttribute(node, which, &raw mut value) }.ok().is_ok() {
        // SAFETY: the driver has written this member; it was zero before.
        reach.everything |= unsafe { value.deviceUpdatableKernelNode.deviceUpdatable } != 0;
    }
    Ok(reach)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARENA: std::ops::Range<u64> = 0x10_0000_0000..0x11_0000_0000;

    fn exec(number: usize) -> CUgraphExec {
        std::ptr::without_provenance_mut(number)
    }

    fn reach(words: &[u64]) -> Reach {
        let mut reach = Reach::default();
        words.iter().for_each(|word| reach.word(*word));
        reach
    }

    /// What a launch touches where the arena is `ARENA` and there is no other memory.
    fn launched(graphs: &Graphs, number: usize) -> Touch {
        graphs.touch_by(exec(number), |touch, word| {
            if ARENA.contains(&word) {
                touch.add(word);
            }
        })
    }

    fn addresses(touch: &Touch) -> Vec<u64> {
        touch.addresses().collect()
    }

    #[test]
    fn a_graph_touches_what_its_nodes_name_each_address_once() {
        let graphs = Graphs::default();
        let mut all = reach(&[ARENA.start + 4096, ARENA.start, 7, 0x7f00_0000_0000]);
        all.join(reach(&[ARENA.start, ARENA.start + 8192]));
        graphs.add(exec(1), all, false);
        let touch = launched(&graphs, 1);
        assert_eq!(addresses(&touch), [ARENA.start, ARENA.start + 4096, ARENA.start + 8192]);
        assert!(!touch.everything);
    }

    #[test]
    fn an_unknown_graph_touches_everything() {
        let graphs = Graphs::default();
        assert!(launched(&graphs, 1).everything);
        graphs.add(exec(1), reach(&[]), false);
        assert!(!launched(&graphs, 1).everything);
        graphs.forget(exec(1));
        assert!(launched(&graphs, 1).everything);
    }

    #[test]
    fn a_changed_node_adds_and_an_update_replaces() {
        let graphs = Graphs::default();
        graphs.add(exec(1), reach(&[ARENA.start]), false);
        graphs.widen(exec(1), reach(&[ARENA.start + 64]));
        assert_eq!(addresses(&launched(&graphs, 1)), [ARENA.start, ARENA.start + 64]);
        graphs.replace(exec(1), reach(&[ARENA.start + 128]));
        assert_eq!(addresses(&launched(&graphs, 1)), [ARENA.start + 128]);
        graphs.widen(exec(1), Reach::everything());
        assert!(launched(&graphs, 1).everything);
        graphs.widen(exec(2), reach(&[ARENA.start]));
        assert!(launched(&graphs, 2).everything, "not known before, not known now");
    }

    #[test]
    fn pointers_are_searched_for_at_launches_that_are_powers_of_two_and_wherever_a_copy_brings_some() {
        let graphs = Graphs::default();
        graphs.add(exec(1), reach(&[ARENA.start]), false);
        let searched: Vec<bool> = (0..8).map(|_| launched(&graphs, 1).may_store_pointers).collect();
        assert_eq!(searched, [true, true, false, true, false, false, false, true]);
        graphs.add(exec(2), Reach { brings_pointers: true, ..reach(&[ARENA.start]) }, false);
        assert!((0..8).all(|_| launched(&graphs, 2).may_store_pointers));
    }

    #[test]
    fn a_graph_is_recognised_whatever_it_touches() {
        let graphs = Graphs::default();
        graphs.add(exec(1), reach(&[ARENA.start]), false);
        graphs.add(exec(2), reach(&[ARENA.start]), false);
        let first = launched(&graphs, 1);
        assert_ne!(first.kind, launched(&graphs, 2).kind);
        graphs.widen(exec(1), reach(&[ARENA.start + 64]));
        assert_eq!(first.kind, launched(&graphs, 1).kind);
    }

    #[test]
    fn where_kernels_launch_graphs_no_graph_shows_what_it_touches() {
        let graphs = Graphs::default();
        graphs.add(exec(1), reach(&[]), false);
        graphs.add(exec(2), reach(&[]), true);
        assert!(launched(&graphs, 1).everything);
    }

    #[test]
    fn nodes_that_cannot_be_read_touch_everything() {
        for harmless in [CU_GRAPH_NODE_TYPE_HOST, CU_GRAPH_NODE_TYPE_EMPTY, CU_GRAPH_NODE_TYPE_EVENT_RECORD] {
            assert_eq!(Reach::of_other(harmless), Reach::default());
        }
        for unread in [CU_GRAPH_NODE_TYPE_CONDITIONAL, CU_GRAPH_NODE_TYPE_MEMCPY_BATCH, 99] {
            assert!(Reach::of_other(unread).everything);
        }
    }
}
