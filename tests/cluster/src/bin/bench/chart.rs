//! Curves as SVG, small enough to be read as text.
//!
//! Must never leave out a point that was measured.

use std::fmt::Write as _;
use std::path::Path;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
/// Around the curves, for numbers and names.
const MARGIN: f64 = 56.0;
const COLOURS: [&str; 3] = ["#0b6e99", "#c2410c", "#3f7d20"];

/// One curve.
pub struct Curve {
    /// What it shows.
    pub name: &'static str,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// Curves over one axis.
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Names of the axes.
    pub axes: (&'static str, &'static str),
    /// The curves.
    pub curves: Vec<Curve>,
    /// The vertical axis by powers of ten.
    pub logarithmic: bool,
}

impl Chart {
    /// Write it.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(path, self.svg())
    }

    fn height(&self, value: f64, most: f64) -> f64 {
        let part = if self.logarithmic {
            value.max(1.0).log10() / most.max(10.0).log10()
        } else {
            value / most
        };
        HEIGHT - MARGIN - part * (HEIGHT - 2.0 * MARGIN)
    }

    fn svg(&self) -> String {
        let all = || self.curves.iter().flat_map(|curve| &curve.points);
        let right = all().map(|point| point.0).fold(1.0, f64::max);
        let most = all().map(|point| point.1).fold(1.0, f64::max);
        let place = |(x, y): (f64, f64)| (MARGIN + x / right * (WIDTH - 2.0 * MARGIN), self.height(y, most));
        let (bottom, end) = (HEIGHT - MARGIN, WIDTH - MARGIN);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n<text x=\"{MARGIN}\" y=\"18\" \
             font-size=\"13\">{}</text>\n<path d=\"M{MARGIN} {MARGIN}V{bottom}H{end}\" fill=\"none\" stroke=\"#888\"/>\n\
             <text x=\"{end}\" y=\"{}\" text-anchor=\"end\">{}</text>\n<text x=\"{MARGIN}\" y=\"{}\">{}</text>\n",
            self.title,
            HEIGHT - 18.0,
            self.axes.0,
            MARGIN - 8.0,
            self.axes.1,
        );
        let marks = if self.logarithmic {
            (0..=most.max(10.0).log10() as i32).map(|power| 10_f64.powi(power)).collect::<Vec<_>>()
        } else {
            vec![0.0, most / 2.0, most]
        };
        for mark in marks {
            let y = self.height(mark, most);
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{mark:.0}</text>", MARGIN - 6.0, y + 4.0);
        }
        for mark in [0.0, right / 2.0, right] {
            let (x, _) = place((mark, 0.0));
            let _ = writeln!(svg, "<text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{mark:.0}</text>", bottom + 14.0);
        }
        for (number, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS.get(number % COLOURS.len()).unwrap_or(&"#000");
            let places: Vec<_> = curve.points.iter().map(|point| place(*point)).collect();
            let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", line.join(" "));
            for (x, y) in &places {
                let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let x = MARGIN + 12.0 + 150.0 * number as f64;
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"34\" fill=\"{colour}\">{}</text>", curve.name);
        }
        svg + "</svg>\n"
    }
}
