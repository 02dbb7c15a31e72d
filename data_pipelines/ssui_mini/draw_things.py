"""Scenes of SSUI-mini that are things, animals and people."""

from __future__ import annotations

from srpo_jax.data_pipelines.ssui_mini.canvas import INK, Canvas

GREEN, DARK_GREEN = (125, 185, 95), (55, 110, 65)
WOOD, DARK_WOOD, STEEL = (190, 135, 80), (120, 75, 45), (205, 212, 220)
WHITE, PAPER = (250, 250, 248), (250, 243, 222)
SKIN = ((250, 215, 180), (225, 175, 130), (160, 105, 70), (100, 65, 45))


def kitchen_knife(c: Canvas) -> None:
    c.tiles(c.pick((235, 235, 228), (228, 232, 238)), (205, 208, 210), 16)
    c.ground(78, c.near((95, 100, 110)))
    c.rect(4, 60, 96, 90, c.near((215, 165, 100)), DARK_WOOD, 2, radius=6)
    fruit = c.pick((225, 55, 45), (245, 150, 40), (95, 170, 60))
    c.oval(20, 66, 13, 12, fruit, INK, 1.5)
    c.poly([(18, 55), (25, 50), (23, 57)], DARK_GREEN)
    c.poly([(8, 32), (66, 32), (66, 52), (30, 50), (16, 42)], STEEL, (95, 105, 120), 2.5)
    c.line([(16, 36), (62, 36)], WHITE, 3)
    c.rect(64, 29, 100, 44, c.pick((40, 38, 42), (110, 50, 35), (35, 55, 90)), INK, 1.5, radius=5)
    for x in (74, 84, 93):
        c.oval(x, 36.5, 2, 2, STEEL)


def axe(c: Canvas) -> None:
    c.gradient(c.near((70, 120, 85)), c.near((110, 150, 95)))
    for x in (-22, 12, 88, 120):
        x += c.rng.uniform(-5, 5)
        c.rect(x - 5, -40, x + 5, 70, (60, 50, 40))
    c.ground(70, c.near((95, 130, 65)))
    c.rect(22, 66, 80, 94, c.near((130, 85, 50)))
    c.oval(51, 94, 29, 9, (120, 78, 46))
    c.oval(51, 66, 29, 10, c.near((230, 190, 130)), DARK_WOOD, 2)
    c.oval(51, 66, 17, 5.5, None, (180, 130, 80), 1.5)
    c.line([(44, 58), (90, 4)], c.near((205, 150, 90)), 6.5)
    head = c.pick((200, 55, 45), (175, 180, 190), (60, 90, 150))
    c.poly([(50, 34), (62, 46), (54, 62), (44, 70), (26, 54), (38, 46)], head, INK, 2)
    c.poly([(44, 70), (26, 54), (23, 60), (36, 72)], (235, 238, 242), INK, 1.5)


def hunting_bow(c: Canvas) -> None:
    c.gradient(c.pick((240, 225, 185), (232, 222, 200)), (225, 205, 150))
    c.ground(84, c.near((175, 165, 90)))
    for r, color in ((27, WHITE), (21, (50, 80, 160)), (15, (215, 55, 50)), (7, (250, 215, 70))):
        c.oval(76, 48, r, r, color, INK, 1)
    bow = c.pick((115, 60, 30), (75, 45, 35), (140, 50, 40))
    c.arc(6, 50, 42, 48, 272, 448, bow, 6)
    c.line([(8, 2), (8, 98)], (250, 250, 245), 1.8)
    c.line([(0, 50), (70, 50)], (60, 45, 35), 3)
    c.poly([(66, 44), (78, 50), (66, 56)], (80, 85, 95), INK, 1)
    feather = c.pick((220, 60, 60), (60, 150, 90), (245, 170, 50))
    for side in (-1, 1):
        c.poly([(-4, 50), (10, 50), (4, 50 + side * 7), (-10, 50 + side * 7)], feather)


def hurt_bird(c: Canvas) -> None:
    c.gradient(c.near((205, 232, 190)), c.near((165, 210, 150)))
    c.ground(80, c.near(GREEN))
    for _ in range(5):
        x = c.rng.uniform(-20, 120)
        c.line([(x, 84), (x + 2, 77)], DARK_GREEN, 2)
    body = c.pick((240, 200, 60), (250, 180, 70), (245, 210, 110))
    for x in (46, 58):
        c.line([(x, 76), (x, 90), (x - 6, 90)], (220, 120, 40), 3)
    c.poly([(74, 52), (102, 40), (98, 60), (76, 66)], c.near((205, 150, 40)))
    c.oval(54, 58, 29, 23, body)
    c.oval(32, 36, 18, 17, body)
    c.poly([(15, 34), (15, 43), (2, 40)], (235, 110, 40))
    c.oval(27, 33, 3, 3.6, INK)
    c.line([(22, 27), (32, 26)], INK, 1.5)
    c.poly([(44, 48), (80, 50), (72, 70), (52, 68)], c.near((215, 160, 45)))
    c.poly([(56, 40), (68, 43), (62, 80), (50, 78)], WHITE, (190, 190, 195), 1.5)
    c.line([(59, 53), (59, 67)], (40, 150, 95), 4)
    c.line([(52, 60), (66, 60)], (40, 150, 95), 4)
    c.line([(18, 22), (44, 20)], WHITE, 5)


def lost_wallet(c: Canvas) -> None:
    c.tiles(c.pick((165, 165, 168), (178, 172, 165)), (125, 125, 130), 34)
    for _ in range(4):
        x, y = c.rng.uniform(-10, 110), c.rng.choice((4, 94)) + c.rng.uniform(-5, 5)
        c.oval(x, y, 4, 2.5, c.pick((200, 130, 50), (180, 80, 40)))
    note = c.near((120, 185, 110))
    c.poly([(22, 22), (84, 14), (88, 46), (26, 52)], note, (60, 110, 60), 2)
    c.poly([(16, 30), (78, 24), (80, 52), (18, 58)], c.near((145, 205, 130)), (60, 110, 60), 2)
    c.oval(48, 38, 8, 7, (90, 150, 85))
    leather = c.pick((110, 60, 35), (90, 50, 40), (135, 70, 35))
    c.rect(10, 44, 92, 90, leather, (60, 35, 25), 2.5, radius=6)
    c.line([(51, 45), (51, 89)], (60, 35, 25), 3)
    c.rect(58, 54, 86, 66, c.pick((80, 140, 210), (230, 190, 80)), INK, 1, radius=2)
    c.rect(58, 69, 86, 80, c.near((160, 105, 65)), (60, 35, 25), 1.5)
    c.oval(22, 67, 4, 4, (235, 200, 90), INK, 1)


def lonely_kitten(c: Canvas) -> None:
    c.gradient(c.near((75, 90, 120)), c.near((105, 120, 145)))
    c.ground(86, c.near((70, 78, 92)))
    fur = c.pick((245, 150, 60), (235, 165, 85), (250, 170, 50))
    c.poly([(28, 34), (30, 6), (48, 22)], fur, INK, 1.5)
    c.poly([(72, 34), (70, 6), (52, 22)], fur, INK, 1.5)
    c.oval(50, 38, 25, 22, fur)
    for x in (40, 60):
        c.oval(x, 36, 5.5, 6, WHITE)
        c.oval(x, 37, 3, 4.5, (40, 90, 60))
    c.poly([(46, 45), (54, 45), (50, 50)], (225, 90, 100))
    for side in (-1, 1):
        c.line([(50 + side * 12, 47), (50 + side * 28, 44)], WHITE, 1.2)
        c.line([(50 + side * 12, 50), (50 + side * 28, 51)], WHITE, 1.2)
    box = c.near((200, 155, 100))
    c.rect(14, 56, 86, 94, box, DARK_WOOD, 2)
    c.poly([(14, 56), (86, 56), (98, 68), (2, 68)], c.near((220, 178, 122)), DARK_WOOD, 2)
    for _ in range(22):
        x, y = c.rng.uniform(-35, 135), c.rng.uniform(-30, 100)
        c.line([(x, y), (x - 3, y + 9)], (165, 200, 235), 1.3)


def ballot_box(c: Canvas) -> None:
    c.gradient(c.pick((60, 95, 165), (70, 110, 150)), (95, 135, 190))
    c.ground(88, c.near((65, 70, 85)))
    c.poly([(34, 4), (68, 4), (68, 48), (34, 48)], WHITE, (140, 145, 155), 2)
    mark = c.pick((215, 50, 50), (40, 150, 80), (40, 70, 160))
    c.rect(40, 10, 62, 31, WHITE, INK, 2)
    c.line([(43, 20), (49, 27), (60, 12)], mark, 4)
    side, top = c.pick((225, 228, 235), (235, 225, 205)), (250, 250, 250)
    c.poly([(10, 46), (24, 38), (78, 38), (92, 46)], top, INK, 1.5)
    c.poly([(30, 41), (72, 41), (74, 44), (28, 44)], INK)
    c.poly([(34, 30), (68, 30), (68, 42), (34, 42)], WHITE)
    c.rect(10, 46, 92, 94, side, INK, 2)
    c.oval(51, 70, 13, 13, c.pick((215, 60, 60), (50, 90, 170)))
    c.poly(
        [
            (51, 60),
            (54, 67),
            (62, 67),
            (56, 72),
            (58, 80),
            (51, 75),
            (44, 80),
            (46, 72),
            (40, 67),
            (48, 67),
        ],
        WHITE,
    )


def flag(c: Canvas) -> None:
    c.sky(extras=False)
    c.ground(94, c.near(GREEN))
    c.line([(10, 110), (10, 2)], (120, 125, 135), 5)
    c.oval(10, 1, 4, 4, (240, 200, 70))
    top, low = c.rng.choice(
        (
            ((40, 160, 150), (120, 65, 155)),
            ((235, 95, 125), (70, 80, 165)),
            ((125, 75, 165), (235, 110, 90)),
        )
    )  # no country's flag

    def band(y0, y1, color):
        wave = (
            (12, 0),
            (20, -3),
            (30, -4.5),
            (40, -3),
            (50, 0),
            (60, 3.5),
            (72, 5.5),
            (84, 4),
            (98, -1),
        )
        c.poly([(x, y0 + dy) for x, dy in wave] + [(x, y1 + dy) for x, dy in wave[::-1]], color)

    band(10, 30, c.near(top))
    band(30, 50, c.near((252, 245, 225), 4))
    band(50, 70, c.near(low))
    c.oval(52, 41, 11, 11, c.near((250, 205, 60), 5), (190, 120, 30), 1.5)


def wheelchair(c: Canvas) -> None:
    c.gradient(c.near((240, 240, 235), 5), c.near((222, 225, 230), 5))
    c.ground(86, c.near((160, 165, 172)))
    c.poly([(-60, 88), (-60, 112), (160, 112), (160, 88)], c.near((150, 155, 165)))
    for x in range(-40, 140, 20):
        c.poly([(x, 94), (x + 10, 94), (x + 6, 99), (x - 4, 99)], (250, 215, 70))
    seat = c.pick((35, 95, 190), (30, 120, 170), (60, 70, 170))
    c.line([(26, 14), (32, 26), (36, 58), (70, 58), (76, 80), (90, 82)], (70, 75, 85), 4)
    c.rect(28, 20, 40, 56, seat, radius=3)
    c.rect(32, 50, 74, 61, seat, radius=3)
    c.line([(36, 40), (66, 40), (68, 56)], (70, 75, 85), 4)
    c.oval(42, 66, 26, 26, None, (40, 42, 50), 5)
    c.oval(42, 66, 20, 20, None, (150, 155, 165), 1.5)
    for dx, dy in ((20, 0), (0, 20), (14, 14), (14, -14)):
        c.line([(42 - dx, 66 - dy), (42 + dx, 66 + dy)], (150, 155, 165), 1.3)
    c.oval(42, 66, 5, 5, (40, 42, 50))
    c.oval(78, 85, 7, 7, (40, 42, 50))
    c.oval(78, 85, 3, 3, STEEL)


def old_man(c: Canvas) -> None:
    c.gradient(c.pick((190, 220, 170), (215, 215, 165)), (160, 195, 130))
    c.ground(86, c.near((205, 190, 150)))
    coat = c.pick((120, 75, 50), (90, 90, 70), (105, 60, 70))
    skin = c.near(SKIN[c.rng.randrange(3)], 5)
    for x in (40, 52):
        c.rect(x, 76, x + 9, 96, (65, 65, 80))
        c.rect(x - 4, 93, x + 9, 99, INK, radius=2)
    c.poly([(34, 44), (62, 44), (68, 82), (30, 82)], coat, INK, 1.5)
    c.line([(36, 50), (22, 68), (14, 68)], coat, 8)
    c.line([(14, 98), (14, 64)], (85, 50, 30), 4)
    c.arc(18.5, 64, 4.5, 6, 180, 350, (85, 50, 30), 4)
    c.oval(47, 28, 14, 15, skin)
    c.poly([(33, 30), (61, 30), (58, 46), (47, 58), (36, 46)], (245, 245, 245), (205, 205, 210), 1)
    c.oval(41, 26, 3.6, 3.6, WHITE, INK, 1.2)
    c.oval(53, 26, 3.6, 3.6, WHITE, INK, 1.2)
    c.oval(47, 31, 3, 3.5, c.near((225, 150, 125)))
    c.rect(28, 14, 66, 19, coat, INK, 1, radius=2)
    c.rect(35, 1, 59, 17, coat, INK, 1, radius=4)


def handshake(c: Canvas) -> None:
    c.gradient(c.pick((250, 205, 80), (245, 190, 95)), (250, 220, 130))
    light, dark = c.rng.choice(SKIN[:2]), c.rng.choice(SKIN[2:])
    left, right = c.rng.sample(((50, 90, 170), (190, 60, 60), (70, 140, 90), (120, 70, 140)), 2)
    c.poly([(-60, 60), (18, 40), (26, 66), (-60, 92)], left)
    c.poly([(160, 60), (82, 40), (74, 66), (160, 92)], right)
    c.poly([(14, 38), (22, 36), (31, 66), (22, 70)], WHITE, INK, 1)
    c.poly([(86, 38), (78, 36), (69, 66), (78, 70)], WHITE, INK, 1)
    c.poly([(23, 38), (46, 34), (66, 44), (64, 68), (52, 74), (30, 66)], light, INK, 1.8)
    c.poly([(77, 38), (54, 32), (38, 42), (34, 54), (40, 58), (52, 50), (70, 66)], dark, INK, 1.8)
    for i in range(4):
        x, y = 40 + i * 6.5, 62 + i * 1.8
        c.oval(x, y, 4.8, 6.5, dark, INK, 1.3)
    for x, y in ((50, 8), (30, 13), (70, 13), (50, 94), (32, 90), (68, 90)):
        c.line([(50 + (x - 50) * 0.86, y + (4 if y < 50 else -4)), (x, y)], (225, 120, 40), 3)


def open_diary(c: Canvas) -> None:
    c.gradient(c.pick((125, 80, 55), (105, 70, 60)), (140, 92, 62))
    for y in (6, 96):
        c.line([(-40, y), (140, y)], (90, 58, 40), 1.5)
    cover = c.pick((205, 60, 90), (60, 110, 150), (110, 70, 140))
    c.poly([(4, 24), (50, 30), (96, 24), (96, 86), (50, 92), (4, 86)], cover, INK, 2)
    c.poly([(8, 20), (50, 27), (50, 87), (8, 80)], PAPER, (180, 165, 140), 1.5)
    c.poly([(92, 20), (50, 27), (50, 87), (92, 80)], PAPER, (180, 165, 140), 1.5)
    for i in range(6):
        y = 31 + i * 8
        c.line([(14, y - 1), (44 - c.rng.uniform(0, 10), y + 3)], (70, 90, 160), 2)
        if i > 2:
            c.line([(56, y + 3), (86 - c.rng.uniform(0, 10), y - 1)], (70, 90, 160), 2)
    for x in (66, 74):
        c.oval(x, 38, 5, 5, (225, 60, 85))
    c.poly([(61.5, 40), (78.5, 40), (70, 51)], (225, 60, 85))
    pen = c.pick((40, 130, 90), (240, 150, 40), (60, 60, 70))
    c.line([(62, 98), (96, 60)], pen, 5)
    c.poly([(62, 98), (58, 102), (65, 102)], INK)


def mailbox(c: Canvas) -> None:
    c.sky()
    c.ground(62, c.near(DARK_GREEN))
    for i in range(9):
        c.oval(-30 + i * 20, 62, 13, 9, c.near((70, 130, 75), 6))
    c.ground(84, c.near(GREEN))
    c.rect(44, 62, 56, 104, c.near(WOOD), DARK_WOOD, 1.5)
    body = c.pick((205, 40, 45), (215, 60, 40), (190, 35, 60))
    c.half(26, 38, 20, 22, body)
    c.poly([(26, 16), (74, 16), (90, 26), (94, 38), (94, 64), (26, 64)], body)
    c.rect(6, 38, 46, 64, body)
    c.half(26, 40, 14, 16, (90, 25, 30))
    c.rect(12, 40, 40, 60, (90, 25, 30))
    c.poly([(2, 44), (34, 40), (37, 58), (5, 62)], WHITE, INK, 1.5)
    c.line([(2, 44), (21, 53), (34, 40)], INK, 1.5)
    c.line([(76, 40), (76, 8)], (245, 200, 60), 4)
    c.rect(76, 6, 90, 17, (245, 200, 60))


def phone(c: Canvas) -> None:
    c.gradient(c.pick((170, 120, 200), (140, 130, 215), (200, 130, 190)), (195, 165, 225))
    for _ in range(5):
        x = c.rng.choice((c.rng.uniform(-25, 14), c.rng.uniform(86, 125)))
        c.oval(x, c.rng.uniform(0, 100), 3, 3, (220, 200, 240))
    c.rect(24, 2, 76, 98, (30, 30, 38), (10, 10, 15), 2, radius=8)
    c.rect(28, 9, 72, 88, c.near((235, 242, 248), 5))
    c.oval(50, 93, 3, 3, (95, 95, 105))
    other = c.pick((80, 190, 110), (70, 150, 235), (250, 150, 60))
    for i, y in enumerate((13, 31, 50, 69)):
        x0, color = ((31, (255, 255, 255)), (44, other))[i % 2]
        x1 = x0 + 25 - c.rng.uniform(0, 4)
        c.rect(x0, y, x1, y + 14, color, (150, 160, 175), 1, radius=4)
        for dy in (5, 9):
            c.line([(x0 + 4, y + dy), (x1 - 4, y + dy)], (95, 105, 120), 1.6)


THINGS = {
    f.__name__: f
    for f in (
        kitchen_knife,
        axe,
        hunting_bow,
        hurt_bird,
        lost_wallet,
        lonely_kitten,
        ballot_box,
        flag,
        wheelchair,
        old_man,
        handshake,
        open_diary,
        mailbox,
        phone,
    )
}
