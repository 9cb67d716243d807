//! Graphs that can be launched.

use std::sync::{Arc, Mutex};

use emuv_cuda::{CUresult, CuResult, types};

use super::{
    Graph,
    step::{Step, run_all},
};
use crate::{
    memory::physical::error,
    stream::queue::{Op, Ticket},
    sync::lock,
};

#[derive(Debug)]
struct Ready {
    /// Handle of the node that it was made of.
    node: u64,
    is_enabled: bool,
    step: Arc<Step>,
    /// Positions of the ones that it follows, ascending.
    after: Vec<usize>,
}

/// A graph that can be launched. It needs the graph that it was made of no more.
#[derive(Debug)]
pub struct Executable {
    /// `CUgraphInstantiate_flags`.
    pub flags: u64,
    /// In an order that its dependencies allow.
    nodes: Mutex<Vec<Ready>>,
    /// Where its last launch ends: launches of one executable follow each other on whatever streams.
    last: Mutex<Option<Ticket>>,
}

/// Why an executable cannot take a graph over: the interface's code, and the graph's node that does not fit.
pub type Mismatch = (types::CUgraphExecUpdateResult, u64);

fn ready(graph: &Graph) -> CuResult<Vec<Ready>> {
    let nodes = graph.ordered()?;
    let place = |handle: &u64| nodes.iter().position(|node| node.handle == *handle);
    let one = |node: &Arc<super::Node>| {
        let mut after: Vec<usize> = node.dependencies().iter().filter_map(place).collect();
        after.sort_unstable();
        Ready { node: node.handle, is_enabled: true, step: node.step(), after }
    };
    Ok(nodes.iter().map(one).collect())
}

impl Executable {
    /// Makes a graph launchable.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where nodes follow each other in a ring.
    pub fn new(graph: &Graph, flags: u64) -> CuResult<Self> {
        Ok(Self { flags, nodes: Mutex::new(ready(graph)?), last: Mutex::default() })
    }

    /// What a launch does now, in order.
    pub fn steps(&self) -> Vec<Arc<Step>> {
        lock(&self.nodes).iter().filter(|ready| ready.is_enabled).map(|ready| Arc::clone(&ready.step)).collect()
    }

    /// Launches it as one operation, which `submit` adds to a stream.
    ///
    /// # Errors
    /// As `submit`.
    pub fn launch(&self, submit: impl FnOnce(Op) -> CuResult<Ticket>) -> CuResult {
        let steps = self.steps();
        let mut last = lock(&self.last);
        let after = last.iter().cloned().collect();
        let op = Op { after, ..Op::device(move |view| run_all(&steps, view)) };
        *last = Some(submit(op)?);
        Ok(())
    }

    /// Changes the one that was made of a node.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a node of another graph.
    fn change<T>(&self, node: u64, change: impl FnOnce(&mut Ready) -> CuResult<T>) -> CuResult<T> {
        let mut nodes = lock(&self.nodes);
        let found = nodes.iter_mut().find(|ready| ready.node == node).ok_or(error(CUresult::INVALID_VALUE))?;
        change(found)
    }

    /// Makes what was made of a node do something else of the same kind from the next launch on.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for another kind and for a node of another graph.
    pub fn set(&self, node: u64, step: Step) -> CuResult {
        self.change(node, |ready| {
            if ready.step.kind() != step.kind() {
                return Err(error(CUresult::INVALID_VALUE));
            }
            ready.step = Arc::new(step);
            Ok(())
        })
    }

    /// Lets launches leave out what was made of a node, or not.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a node of another graph, or one that is no kernel, copy or fill.
    pub fn enable(&self, node: u64, is_enabled: bool) -> CuResult {
        self.change(node, |ready| {
            if !matches!(*ready.step, Step::Kernel(_) | Step::Copy(..) | Step::Fill(..)) {
                return Err(error(CUresult::INVALID_VALUE));
            }
            ready.is_enabled = is_enabled;
            Ok(())
        })
    }

    /// Whether launches include what was made of a node.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a node of another graph.
    pub fn is_enabled(&self, node: u64) -> CuResult<bool> {
        self.change(node, |ready| Ok(ready.is_enabled))
    }

    /// Takes over what the nodes of another graph of the same form do. A copy keeps to the kinds of memory that it copies
    /// between, as they were when each was described, whatever lies there now (seen of driver 580 on an H100).
    ///
    /// # Errors
    /// `Err` for a graph with a ring, `Ok(Err(_))` for one of another form: then nothing changes.
    pub fn update(&self, graph: &Graph) -> CuResult<Result<(), Mismatch>> {
        let wanted = ready(graph)?;
        let mut nodes = lock(&self.nodes);
        if wanted.len() != nodes.len() {
            return Ok(Err((types::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, 0)));
        }
        for (now, next) in nodes.iter().zip(&wanted) {
            if now.after != next.after {
                return Ok(Err((types::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, next.node)));
            }
            if now.step.kind() != next.step.kind() {
                return Ok(Err((types::CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED, next.node)));
            }
            if let (Step::Copy(_, now), Step::Copy(_, then)) = (&*now.step, &*next.step)
                && now != then
            {
                return Ok(Err((types::CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED, next.node)));
            }
        }
        for (now, next) in nodes.iter_mut().zip(wanted) {
            now.step = next.step;
        }
        Ok(Ok(()))
    }
}
