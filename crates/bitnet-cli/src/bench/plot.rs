//! The bar chart of `bench kernels`: a bar a kernel, and across each bar the time that its bytes take at the bandwidth of a
//! plain read, below which nothing can be.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{BF16, LAYER, OURS, REFERENCE, Report};

/// Size of the drawing.
const SIZE: (u32, u32) = (1180, 560);

/// Share of a shape's width that its bars take.
const BARS: f64 = 0.84;

const COLORS: [(&str, RGBColor); 4] = [
    (OURS, RGBColor(0x1b, 0x7f, 0x5c)),
    (LAYER, RGBColor(0x7c, 0xb8, 0x4e)),
    (REFERENCE, RGBColor(0xd9, 0x8b, 0x2b)),
    (BF16, RGBColor(0x6b, 0x7a, 0x99)),
];

/// The chart as SVG; cold times on a logarithmic axis.
pub(super) fn bars(report: &Report) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(report, &mut svg).map_err(|error| anyhow::anyhow!("cannot draw the chart: {error}"))?;
    Ok(svg)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(report: &Report, svg: &mut String) -> Drawn {
    let floor = |bytes: u64| bytes as f64 / report.peak_gb_per_s / 1e3;
    let timings = || report.rows.iter().flat_map(|row| &row.timings);
    let low = timings().map(|t| floor(t.bytes)).fold(f64::INFINITY, f64::min) / 1.5;
    let high = timings().map(|t| t.cold_us).fold(1.0, f64::max) * 1.8;
    let low = if low.is_finite() { low } else { high / 10.0 };
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let device = report
        .facts
        .iter()
        .find(|(name, _)| *name == "device")
        .map_or("", |(_, value)| value);
    let title = device.split(" (").next().unwrap_or_default();
    let mut chart = ChartBuilder::on(&root)
        .caption(
            format!("y = W x, one token, weights from memory: {title}"),
            ("sans-serif", 20),
        )
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..report.rows.len() as f64, (low..high).log_scale())?;
    let shapes: Vec<String> = report
        .rows
        .iter()
        .map(|row| format!("{} x {}", row.n, row.k))
        .collect();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc("microseconds")
        .y_label_formatter(&|us| {
            if *us < 1.0 {
                format!("{us:.1}")
            } else {
                format!("{us:.0}")
            }
        })
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(BLACK.mix(0.05))
        .bold_line_style(BLACK.mix(0.15))
        .draw()?;
    let kernels = report.kernels();
    let colors = COLORS.into_iter().filter(|(kernel, _)| kernels.contains(kernel));
    let width = BARS / kernels.len().max(1) as f64;
    for (i, (kernel, color)) in colors.enumerate() {
        let measured: Vec<(f64, f64, f64)> = report
            .rows
            .iter()
            .enumerate()
            .filter_map(|(row, shape)| {
                let timing = shape.timing(kernel)?;
                Some((
                    row as f64 + (1.0 - BARS) / 2.0 + i as f64 * width,
                    timing.cold_us,
                    floor(timing.bytes),
                ))
            })
            .collect();
        let bar = |&(x, us, _): &(f64, f64, f64)| {
            Rectangle::new([(x, low), (x + width * 0.94, us)], color.filled())
        };
        chart
            .draw_series(measured.iter().map(bar))?
            .label(kernel)
            .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 14, y + 6)], color.filled()));
        let centered = Pos::new(HPos::Center, VPos::Bottom);
        let style = TextStyle::from(("sans-serif", 12).into_font()).pos(centered);
        chart.draw_series(measured.iter().map(|&(x, us, _)| {
            let digits = usize::from(us < 100.0);
            Text::new(
                format!("{us:.digits$}"),
                (x + width / 2.0, us * 1.03),
                style.clone(),
            )
        }))?;
        // Above its own bar, below the numbers: what the bytes alone take.
        chart.draw_series(measured.iter().map(|&(x, _, floor)| {
            PathElement::new([(x, floor), (x + width * 0.94, floor)], BLACK.stroke_width(3))
        }))?;
    }
    chart
        .draw_series(std::iter::empty::<PathElement<(f64, f64)>>())?
        .label(format!("limit at {:.0} GB/s, a plain read", report.peak_gb_per_s))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 14, y)], BLACK.stroke_width(3)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()?;
    shape_names(&root, chart.as_coord_spec(), low, &shapes)?;
    root.present()?;
    Ok(())
}

/// Names of the shapes under the middle of their bars.
fn shape_names<DB: DrawingBackend>(
    root: &DrawingArea<DB, plotters::coord::Shift>,
    coord: &Cartesian2d<RangedCoordf64, LogCoord<f64>>,
    low: f64,
    shapes: &[String],
) -> Drawn
where
    DB::ErrorType: 'static,
{
    let style = TextStyle::from(("sans-serif", 13).into_font()).pos(Pos::new(HPos::Center, VPos::Top));
    for (i, shape) in shapes.iter().enumerate() {
        let (x, y) = coord.translate(&(i as f64 + 0.5, low));
        root.draw(&Text::new(shape.clone(), (x, y + 8), style.clone()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measurement_has_a_bar_and_a_limit() {
        let svg = bars(&super::super::report::tests::example()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in [
            "2560 x 2560",
            "128256 x 2560",
            "W2A8",
            "reference",
            "BF16",
            "limit at 4000 GB/s",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        // Five bars and four legend entries in the kernels' colors.
        let colors = ["#1B7F5C", "#7CB84E", "#D98B2B", "#6B7A99"];
        assert_eq!(colors.map(|color| svg.matches(color).count()), [2, 2, 2, 3]);
    }
}
