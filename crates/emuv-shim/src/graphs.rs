//! What executable graphs may touch.

use emuv_cuda::types::CUgraphExec;

use crate::touch::Touch;

/// See the module's head. One per process.
#[derive(Debug, Default)]
pub(crate) struct Graphs;

impl Graphs {
    /// What a launch of the graph may touch.
    pub fn touch(&self, _exec: CUgraphExec) -> Touch {
        Touch::everything()
    }
}
