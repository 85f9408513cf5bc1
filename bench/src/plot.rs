//! Draws a chart as SVG: lines with the spread of each point, on axes that are linear or logarithmic.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use crate::results::{Spread, count, number};

/// Lines over a pair of axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows, in a few words.
    pub title: String,
    /// What goes from left to right.
    pub x: Axis,
    /// What goes upwards.
    pub y: Axis,
    /// What is drawn, in the order of the legend.
    pub lines: Vec<Line>,
}

/// An axis, with its unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it counts, and in which unit.
    pub label: String,
    /// Where its values stand.
    pub scale: Scale,
}

/// Where values stand on an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// From zero, in equal steps.
    Linear,
    /// Each power of ten as wide as the one before.
    Log,
    /// Quantiles, as `1 / (1 - q)` on a logarithmic axis: 90 % is as far from 99 % as that is from 99.9 %.
    Quantile,
}

/// One line, and its name in the legend.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// From left to right.
    pub points: Vec<Point>,
    /// Drawn with dashes: what others are held against.
    pub is_reference: bool,
}

/// A median with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where it stands on the horizontal axis.
    pub x: f64,
    /// The median, the least and the most.
    pub y: Spread,
}

const SIZE: (u32, u32) = (900, 420);
/// The width of the legend, beside the lines so that it hides none.
const LEGEND_WIDTH: u32 = 210;
const LEGEND_LINE_HEIGHT: i32 = 22;
/// From the palette of Okabe and Ito, which people who see colours otherwise can tell apart, too.
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
const GREY: RGBColor = RGBColor(225, 225, 225);
/// The width of half the bar at the ends of a spread, in pixels.
const CAP: u32 = 8;
/// With more points than these the line says it all.
const MARKS_MAX: usize = 12;
/// Labels below the horizontal axis at most.
const X_LABELS: usize = 7;
/// Pixels of a dash, and between two.
const DASH: u32 = 6;
const GAP: u32 = 4;
const FONT: &str = "sans-serif";

/// The chart on a white ground, which is read on a dark page, too.
///
/// # Errors
/// When there is nothing to draw.
pub fn svg(chart: &Chart) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(SIZE.0 - LEGEND_WIDTH);
        let points = || chart.lines.iter().flat_map(|line| chart.shown(line));
        let x = extent(points().map(|point| (point.x, point.x)));
        let y = extent(points().map(|point| (point.y.min, point.y.max)));
        let (x, y) = x
            .zip(y)
            .ok_or_else(|| anyhow!("{}: no points", chart.title))?;
        let x = match chart.x.scale {
            Scale::Linear => 0.0..x.1 * 1.05,
            Scale::Log | Scale::Quantile => x.0 * 0.8..x.1 * 1.25,
        };
        let y = match chart.y.scale {
            Scale::Linear => 0.0..(y.1 * 1.1).max(f64::MIN_POSITIVE),
            Scale::Log | Scale::Quantile => decades(y.0, y.1),
        };
        match (chart.x.scale, chart.y.scale) {
            (Scale::Linear, Scale::Linear) => draw(chart, &left, x, y),
            (Scale::Linear, _) => draw(chart, &left, x, y.log_scale()),
            (_, Scale::Linear) => draw(chart, &left, x.log_scale(), y),
            (_, _) => draw(chart, &left, x.log_scale(), y.log_scale()),
        }?;
        legend(chart, &right)?;
        area.present()?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw<X, Y>(chart: &Chart, area: &Area<'_>, x: X, y: Y) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut context = ChartBuilder::on(area)
        .caption(&chart.title, (FONT, 20))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    context
        .configure_mesh()
        .x_labels(X_LABELS)
        .x_desc(&chart.x.label)
        .y_desc(&chart.y.label)
        .x_label_formatter(&|value| chart.x.scale.label(*value))
        .y_label_formatter(&|value| chart.y.scale.label(*value))
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 16))
        .bold_line_style(GREY)
        .light_line_style(WHITE)
        .draw()?;
    for (line, color) in chart.lines.iter().zip(COLORS.iter().cycle()) {
        let style = color.stroke_width(2);
        let points = || chart.shown(line).map(|point| (point.x, point.y.median));
        match line.is_reference {
            true => context.draw_series(DashedLineSeries::new(points(), DASH, GAP, style))?,
            false => context.draw_series(LineSeries::new(points(), style))?,
        };
        context.draw_series(
            chart
                .shown(line)
                .filter(|point| point.y.min < point.y.max)
                .map(|Point { x, y }| {
                    ErrorBar::new_vertical(*x, y.min, y.median, y.max, color.filled(), CAP)
                }),
        )?;
        let is_few = line.points.len() <= MARKS_MAX;
        context.draw_series(
            chart
                .shown(line)
                .filter(|point| is_few && point.y.min == point.y.max)
                .map(|point| Circle::new((point.x, point.y.median), CAP / 2, color.filled())),
        )?;
    }
    Ok(())
}

/// What each line is, from top to bottom.
fn legend(chart: &Chart, area: &Area<'_>) -> Result<()> {
    let mut y = 60;
    for (line, color) in chart.lines.iter().zip(COLORS.iter().cycle()) {
        let (left, right) = ((8, y), (34, y));
        let style = color.stroke_width(2);
        match line.is_reference {
            true => area.draw(&DashedPathElement::new([left, right], DASH, GAP, style))?,
            false => area.draw(&PathElement::new([left, right], style))?,
        }
        area.draw(&Text::new(line.name.clone(), (42, y - 6), (FONT, 15)))?;
        y += LEGEND_LINE_HEIGHT;
    }
    Ok(())
}

impl Chart {
    /// Leaves out lines none of whose points has a place on the axes. Without any other there is nothing to draw.
    pub fn prune(&mut self) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.retain(|line| self.shown(line).next().is_some());
        self.lines = lines;
    }

    /// Points of a line that have a place on the axes: there is no zero on a logarithmic one.
    fn shown<'a>(&self, line: &'a Line) -> impl Iterator<Item = &'a Point> + Clone {
        let (x, y) = (self.x.scale, self.y.scale);
        line.points
            .iter()
            .filter(move |point| x.has(point.x) && y.has(point.y.min))
    }
}

/// The least and the most; none where there is nothing.
fn extent(values: impl Iterator<Item = (f64, f64)>) -> Option<(f64, f64)> {
    values.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// Whole decades around values, and a little more, so that those at the ends have labels however they are rounded.
fn decades(min: f64, max: f64) -> Range<f64> {
    let power = |exponent: f64| 10_f64.powf(exponent);
    power((min * 0.9).log10().floor()) * 0.999..power((max * 1.1).log10().ceil()) * 1.001
}

impl Scale {
    fn has(self, value: f64) -> bool {
        self == Self::Linear || value > 0.0
    }

    fn label(self, value: f64) -> String {
        match self {
            Self::Quantile => match 100.0 - 100.0 / value {
                percent if percent < 99.0 => format!("{percent:.0} %"),
                percent => format!("{} %", (percent * 1000.0).round() / 1000.0),
            },
            Self::Linear | Self::Log if value.fract() == 0.0 => count(value as u64),
            Self::Linear | Self::Log => number(value).trim_end_matches('0').to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<Point>) -> Chart {
        let axis = |label: &str, scale| Axis {
            label: label.to_owned(),
            scale,
        };
        Chart {
            title: "cost".to_owned(),
            x: axis("sockets", Scale::Log),
            y: axis("µs", Scale::Log),
            lines: vec![Line {
                name: "node & bus".to_owned(),
                points,
                is_reference: false,
            }],
        }
    }

    fn point(x: f64, min: f64, median: f64, max: f64) -> Point {
        Point {
            x,
            y: Spread { median, min, max },
        }
    }

    #[test]
    fn a_chart_says_what_it_shows() {
        let drawn = chart(vec![
            point(1.0, 40.0, 44.0, 50.0),
            point(1000.0, 0.4, 0.5, 0.6),
        ]);
        let svg = svg(&drawn).unwrap();
        for text in ["cost", "sockets", "µs", "node &amp; bus", "1,000", "0.1"] {
            let lines: Vec<_> = svg.lines().map(str::trim).collect();
            assert!(lines.contains(&text), "no {text} in {svg}");
        }
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n"),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn one_point_is_a_chart_and_none_is_none() {
        assert!(svg(&chart(vec![point(1.0, 1.0, 1.0, 1.0)])).is_ok());
        assert!(svg(&chart(vec![])).is_err());
        let mut nowhere = chart(vec![point(1.0, 0.0, 0.0, 0.0)]);
        assert!(svg(&nowhere).is_err());
        nowhere.prune();
        assert_eq!(nowhere.lines, []);
    }

    #[test]
    fn labels_are_short() {
        let labels = |scale: Scale, values: &[f64]| {
            let labels = values.iter().map(|value| scale.label(*value));
            labels.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            labels(Scale::Log, &[0.01, 0.1, 1.0, 1000.0]),
            "0.01 0.1 1 1,000"
        );
        assert_eq!(
            labels(Scale::Linear, &[0.0, 0.25, 2.5, 30.0]),
            "0 0.25 2.5 30"
        );
        assert_eq!(
            labels(Scale::Quantile, &[1.0, 10.0, 100.0, 1000.0]),
            "0 % 90 % 99 % 99.9 %"
        );
    }
}
