//! Graphs: work that is described once and launched many times.

pub mod capture;
pub mod executable;
pub mod step;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use emuv_cuda::{CUresult, CuResult};

use self::{capture::Captures, executable::Executable, step::Step};
use crate::{
    handles::{self, Handles},
    memory::physical::error,
    sync::lock,
};

/// A node of a graph.
#[derive(Debug)]
pub struct Node {
    /// Its handle.
    pub handle: u64,
    /// Handle of the graph that it belongs to.
    pub graph: u64,
    /// The node that it was cloned from.
    pub original: Option<u64>,
    /// Handles of the nodes that it follows.
    dependencies: Mutex<Vec<u64>>,
    step: Mutex<Arc<Step>>,
}

impl Node {
    /// What it does now.
    pub fn step(&self) -> Arc<Step> {
        Arc::clone(&lock(&self.step))
    }

    /// Makes it do something else of the same kind.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for another kind.
    pub fn set(&self, step: Step) -> CuResult {
        let mut now = lock(&self.step);
        if now.kind() != step.kind() {
            return Err(error(CUresult::INVALID_VALUE));
        }
        *now = Arc::new(step);
        Ok(())
    }

    /// The nodes that it follows.
    pub fn dependencies(&self) -> Vec<u64> {
        lock(&self.dependencies).clone()
    }
}

/// A graph.
#[derive(Debug)]
pub struct Graph {
    /// Its handle.
    pub handle: u64,
    /// In the order in which they were added.
    nodes: Mutex<Vec<Arc<Node>>>,
}

impl Graph {
    /// Its nodes in the order in which they were added.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        lock(&self.nodes).clone()
    }

    /// Its nodes such that each comes after those that it follows; the order is the same for equal graphs.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where nodes follow each other in a ring.
    pub fn ordered(&self) -> CuResult<Vec<Arc<Node>>> {
        let mut waiting = self.nodes();
        let (mut ordered, mut placed) = (Vec::with_capacity(waiting.len()), HashSet::new());
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain(|node| {
                let is_ready = node.dependencies().iter().all(|handle| placed.contains(handle));
                if is_ready {
                    placed.insert(node.handle);
                    ordered.push(Arc::clone(node));
                }
                !is_ready
            });
            if waiting.len() == before {
                return Err(error(CUresult::INVALID_VALUE));
            }
        }
        Ok(ordered)
    }

    /// All of some nodes and everything that they follow, directly or not.
    fn with_ancestors(&self, handles: &[u64]) -> HashSet<u64> {
        let mut found: HashSet<u64> = handles.iter().copied().collect();
        // A node can only follow nodes, so as many rounds as there are nodes reach all of them.
        let nodes = self.nodes();
        loop {
            let reached: Vec<u64> = nodes
                .iter()
                .filter(|node| found.contains(&node.handle))
                .flat_map(|node| node.dependencies())
                .filter(|handle| !found.contains(handle))
                .collect();
            if reached.is_empty() {
                return found;
            }
            found.extend(reached);
        }
    }
}

/// All graphs of a process, what they were made into, and what is being captured.
#[derive(Debug, Default)]
pub struct Graphs {
    graphs: Handles<Graph>,
    nodes: Handles<Node>,
    /// Graphs that can be launched.
    pub executables: Handles<Executable>,
    /// Streams that are being captured.
    pub captures: Captures,
}

impl Graphs {
    /// An empty graph.
    pub fn create(&self) -> Arc<Graph> {
        let graph = Arc::new(Graph { handle: handles::fresh(), nodes: Mutex::default() });
        self.graphs.place(graph.handle, Arc::clone(&graph));
        graph
    }

    /// A graph.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is no such graph.
    pub fn graph(&self, handle: u64) -> CuResult<Arc<Graph>> {
        self.graphs.get(handle).ok_or(error(CUresult::INVALID_VALUE))
    }

    /// A node.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is no such node.
    pub fn node(&self, handle: u64) -> CuResult<Arc<Node>> {
        self.nodes.get(handle).ok_or(error(CUresult::INVALID_VALUE))
    }

    /// An executable graph.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is none of that handle.
    pub fn executable(&self, handle: u64) -> CuResult<Arc<Executable>> {
        self.executables.get(handle).ok_or(error(CUresult::INVALID_VALUE))
    }

    /// Adds a node that follows others of the same graph.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a dependency that is no node of the graph, or is named twice.
    pub fn add(&self, graph: &Graph, dependencies: &[u64], step: Step) -> CuResult<u64> {
        self.check(graph, dependencies)?;
        Ok(self.insert(graph, dependencies.to_vec(), Arc::new(step), None))
    }

    fn insert(&self, graph: &Graph, dependencies: Vec<u64>, step: Arc<Step>, original: Option<u64>) -> u64 {
        let node = Arc::new(Node {
            handle: handles::fresh(),
            graph: graph.handle,
            original,
            dependencies: Mutex::new(dependencies),
            step: Mutex::new(step),
        });
        self.nodes.place(node.handle, Arc::clone(&node));
        lock(&graph.nodes).push(Arc::clone(&node));
        node.handle
    }

    /// Whether these are nodes of the graph, each named once.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where not.
    pub fn check(&self, graph: &Graph, dependencies: &[u64]) -> CuResult {
        let different: HashSet<&u64> = dependencies.iter().collect();
        let belongs = |handle: &u64| self.nodes.get(*handle).is_some_and(|node| node.graph == graph.handle);
        if different.len() == dependencies.len() && dependencies.iter().all(belongs) {
            Ok(())
        } else {
            Err(error(CUresult::INVALID_VALUE))
        }
    }

    /// Makes a node follow another one.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for nodes of other graphs, and where it follows already.
    pub fn connect(&self, graph: &Graph, from: u64, to: u64) -> CuResult {
        self.check(graph, &[from, to])?;
        let node = self.node(to)?;
        let mut dependencies = lock(&node.dependencies);
        if dependencies.contains(&from) {
            return Err(error(CUresult::INVALID_VALUE));
        }
        dependencies.push(from);
        Ok(())
    }

    /// A copy of a graph with nodes of its own.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where nodes follow each other in a ring.
    pub fn copy(&self, graph: &Graph) -> CuResult<Arc<Graph>> {
        let nodes = graph.ordered()?;
        let copy = self.create();
        let mut made = std::collections::HashMap::new();
        for node in nodes {
            let dependencies = node.dependencies().iter().filter_map(|handle| made.get(handle).copied()).collect();
            made.insert(node.handle, self.insert(&copy, dependencies, node.step(), Some(node.handle)));
        }
        // The copy lists its nodes as the original does.
        let place = |copied: &Arc<Node>| graph.nodes().iter().position(|node| Some(node.handle) == copied.original);
        lock(&copy.nodes).sort_by_cached_key(place);
        Ok(copy)
    }

    /// Ends a graph and its nodes. What was made of it stays.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is no such graph.
    pub fn destroy(&self, handle: u64) -> CuResult {
        let graph = self.graphs.remove(handle).ok_or(error(CUresult::INVALID_VALUE))?;
        for node in graph.nodes() {
            self.nodes.remove(node.handle);
        }
        Ok(())
    }

    /// Takes a node out of its graph; nothing follows it any more.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is no such node.
    pub fn destroy_node(&self, handle: u64) -> CuResult {
        let node = self.node(handle)?;
        let graph = self.graph(node.graph)?;
        self.nodes.remove(handle);
        lock(&graph.nodes).retain(|node| node.handle != handle);
        for node in graph.nodes() {
            lock(&node.dependencies).retain(|other| *other != handle);
        }
        Ok(())
    }
}
