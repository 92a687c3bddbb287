//! Figures as pictures.

use std::ops::Range;
use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::scenario::Result;

/// Lines over one axis, drawn into a file of this name.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

/// What the numbers are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Axis {
    /// From zero on.
    Linear(&'static str),
    Logarithmic(&'static str),
}

#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const SIZE: (u32, u32) = (800, 500);

/// Of Okabe and Ito: they can be told apart by everybody, and in print.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    BLACK,
    RGBColor(150, 150, 150),
];

impl Plot {
    /// Writes `<file>.svg`.
    pub(crate) fn draw(&self, folder: &Path) -> Result<()> {
        let path = folder.join(self.file).with_extension("svg");
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (x, y) = (
            range(self.x, points().map(|point| point.0)),
            range(self.y, points().map(|point| point.1)),
        );
        let mut ticks: Vec<f64> = points().map(|point| point.0).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let area = SVGBackend::new(&path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area);
        chart.caption(&self.title, ("sans-serif", 20)).margin(12);
        chart.x_label_area_size(40).y_label_area_size(70);
        match (self.x, self.y) {
            (Axis::Linear(_), Axis::Linear(_)) => self.draw_on(&mut chart, x, y)?,
            (Axis::Linear(_), Axis::Logarithmic(_)) => {
                self.draw_on(&mut chart, x, y.log_scale())?;
            }
            (Axis::Logarithmic(_), Axis::Linear(_)) => {
                self.draw_on(&mut chart, x.log_scale().with_key_points(ticks), y)?;
            }
            (Axis::Logarithmic(_), Axis::Logarithmic(_)) => {
                let x = x.log_scale().with_key_points(ticks);
                self.draw_on(&mut chart, x, y.log_scale())?;
            }
        }
        Ok(area.present()?)
    }

    fn draw_on<X, Y>(
        &self,
        chart: &mut ChartBuilder<'_, '_, SVGBackend<'_>>,
        x: impl AsRangedCoord<CoordDescType = X, Value = f64>,
        y: impl AsRangedCoord<CoordDescType = Y, Value = f64>,
    ) -> Result<()>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut chart = chart.build_cartesian_2d(x, y)?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).x_desc(self.x.label()).y_desc(self.y.label());
        mesh.x_label_formatter(&short).y_label_formatter(&short).y_labels(8).draw()?;
        for (line, color) in self.lines.iter().zip(COLORS.iter().cycle()) {
            let style = color.stroke_width(2);
            let drawn = LineSeries::new(line.points.iter().copied(), style).point_size(3);
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style);
            chart.draw_series(drawn)?.label(&line.name).legend(legend);
        }
        let mut labels = chart.configure_series_labels();
        labels.background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2));
        Ok(labels.position(SeriesLabelPosition::MiddleRight).draw()?)
    }
}

impl Axis {
    const fn label(self) -> &'static str {
        match self {
            Self::Linear(label) | Self::Logarithmic(label) => label,
        }
    }
}

/// A number of a few digits.
fn short(number: &f64) -> String {
    format!("{}", (number * 1e3).round() / 1e3)
}

/// With room above for the names of the lines.
fn range(axis: Axis, figures: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let largest = figures.clone().fold(f64::MIN_POSITIVE, f64::max);
    match axis {
        Axis::Linear(_) => 0.0..largest * 1.4,
        Axis::Logarithmic(_) => figures.fold(largest, f64::min) * 0.8..largest * 10.0,
    }
}
