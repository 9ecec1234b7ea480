"""Draw the plugin's icon: an object that a click cuts out.

python icons/draw_icon.py
"""

from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 256
SAMPLES = 4  # per pixel and axis, for smooth edges


def draw_icon() -> Image.Image:
    """Return the icon, 256 x 256 RGBA."""
    icon = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)).resize((SAMPLES * SIDE, SAMPLES * SIDE))
    draw = ImageDraw.Draw(icon)

    def scaled(*coordinates: float) -> list[float]:
        return [SAMPLES * coordinate for coordinate in coordinates]

    draw.rounded_rectangle(scaled(4, 4, 252, 252), radius=SAMPLES * 48, fill=(24, 32, 56))
    draw.rounded_rectangle(scaled(36, 84, 148, 196), radius=SAMPLES * 20, fill=(70, 82, 116))
    draw.ellipse(scaled(92, 52, 212, 172), fill=(0, 178, 255), outline=(255, 255, 255), width=SAMPLES * 7)
    draw.polygon(scaled(60, 216, 116, 128, 172, 216), fill=(255, 111, 89), outline=(255, 255, 255), width=SAMPLES * 7)
    draw.ellipse(scaled(146, 92, 170, 116), fill=(255, 255, 255))
    draw.ellipse(scaled(152, 98, 164, 110), fill=(24, 32, 56))
    return icon.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw_icon().save(Path(__file__).with_name("icon.png"))
