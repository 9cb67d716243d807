//! What was, for the graphs: the last samples of each GPU.

use std::collections::{HashMap, VecDeque};

use emuv_watch::{Link, Snapshot};

/// Samples that are kept: as many as the widest terminal shows.
const MOST: usize = 512;

/// One GPU, at one sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Point {
    /// Bytes a second, moved and read in place.
    pub into: f64,
    pub out: f64,
}

/// See the module's head.
#[derive(Debug, Clone, Default)]
pub struct History {
    gpus: HashMap<String, VecDeque<Point>>,
}

impl History {
    /// Takes a sample in.
    pub fn add(&mut self, snapshot: &Snapshot) {
        self.gpus.retain(|uuid, _| snapshot.gpu(uuid).is_some());
        for gpu in &snapshot.gpus {
            let rates = gpu.under_emuv.rates.unwrap_or_default();
            let into = rates.in_bytes_per_second + rates.in_place_bytes_per_second;
            let points = self.gpus.entry(gpu.uuid.clone()).or_default();
            if points.len() == MOST {
                points.pop_front();
            }
            points.push_back(Point { into, out: rates.out_bytes_per_second });
        }
    }

    /// The last points of a GPU, oldest first.
    pub fn last(&self, uuid: &str, most: usize) -> Vec<Point> {
        let points = self.gpus.get(uuid);
        points
            .map(|points| points.iter().skip(points.len().saturating_sub(most)).copied().collect())
            .unwrap_or_default()
    }

    /// The height of the graphs of a GPU: what its link brings, or else the most that was seen.
    pub fn scale(&self, uuid: &str, link: Option<Link>) -> (f64, f64) {
        let most = |value: fn(&Point) -> f64| self.gpus.get(uuid).into_iter().flatten().map(value).fold(1.0, f64::max);
        let (into, out) = (most(|point| point.into), most(|point| point.out));
        #[allow(clippy::cast_precision_loss)] // Far below 2^52.
        link.map_or((into, out), |link| {
            (into.max(link.in_bytes_per_second as f64), out.max(link.out_bytes_per_second as f64))
        })
    }
}
