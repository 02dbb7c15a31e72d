"""Scenes of SSUI-mini that are places: outdoors, buildings and rooms."""

from __future__ import annotations

from srpo_jax.data_pipelines.ssui_mini.canvas import INK, Canvas

GREEN, DARK_GREEN = (120, 180, 90), (50, 115, 70)
SAND, STONE, WOOD = (232, 208, 155), (150, 150, 155), (165, 110, 65)
WHITE, CREAM = (250, 250, 248), (242, 232, 205)


def railway_track(c: Canvas) -> None:
    c.sky()
    c.ground(38, c.near(GREEN))
    c.poly([(44, 38), (56, 38), (118, 112), (-18, 112)], c.near((150, 140, 130)))
    for i in range(7):
        y = 40 + 1.35 * i * (i + 3)
        half, high = 6 + (y - 38) * 0.62, 1.5 + (y - 38) * 0.07
        c.rect(50 - half, y, 50 + half, y + high, c.near((95, 60, 40)))
    for side in (-1, 1):
        c.poly(
            [
                (50 + side * 3, 37),
                (50 + side * 4.5, 37),
                (50 + side * 42, 112),
                (50 + side * 34, 112),
            ],
            (75, 80, 95),
        )
    c.line([(82, 62), (82, 26)], INK, 2.5)
    c.rect(77, 14, 87, 34, INK, radius=3)
    c.oval(82, 19, 3.4, 3.4, c.pick((235, 50, 45), (90, 40, 40)))
    c.oval(82, 28.5, 3.4, 3.4, c.pick((80, 215, 100), (40, 80, 50)))


def cliff_edge(c: Canvas) -> None:
    c.sky()
    c.ground(72, c.near((40, 110, 175)))
    for _ in range(6):
        x, y = c.rng.uniform(55, 120), c.rng.uniform(76, 105)
        c.line([(x, y), (x + 12, y)], (150, 200, 235), 1.5)
    rock = c.near((170, 105, 65))
    c.poly(
        [(-40, 36), (55, 32), (60, 40), (50, 56), (56, 74), (45, 90), (48, 120), (-40, 120)], rock
    )
    for points in (
        [(20, 50), (30, 70), (22, 95)],
        [(42, 42), (38, 62), (44, 80)],
        [(0, 55), (6, 85)],
    ):
        c.line(points, (115, 65, 40), 2.5)
    c.poly([(-40, 30), (56, 27), (62, 36), (56, 41), (40, 39), (20, 43), (-40, 41)], c.near(GREEN))
    c.line([(48, 28), (48, 12)], (110, 75, 45), 2.5)
    c.poly([(42, 12), (54, 12), (48, 2)], (240, 190, 50), INK, 1.5)


def frozen_lake(c: Canvas) -> None:
    c.sky(extras=False)
    c.poly(
        [(-40, 46), (-5, 16), (25, 42), (58, 8), (95, 40), (140, 20), (140, 60), (-40, 60)],
        c.near((175, 190, 215)),
    )
    c.poly([(46, 20), (58, 8), (70, 20), (62, 18), (57, 24), (52, 18)], WHITE)
    c.ground(46, c.near((240, 244, 250), 5))
    for x in (-8, 6, 92, 106):
        x += c.rng.uniform(-3, 3)
        c.poly([(x - 8, 54), (x + 8, 54), (x, 24)], c.near(DARK_GREEN))
        c.poly([(x - 4, 36), (x + 4, 36), (x, 24)], WHITE)
    c.oval(50, 78, 54, 24, c.near((150, 205, 230)), (205, 232, 245), 3)
    for points in (
        [(22, 70), (40, 76), (52, 72), (70, 84), (84, 80)],
        [(40, 76), (46, 92)],
        [(52, 72), (60, 62)],
        [(70, 84), (68, 96)],
    ):
        c.line(points, (245, 252, 255), 2)


def changing_cabin(c: Canvas) -> None:
    c.sky()
    c.ground(58, c.near((70, 160, 205)))
    c.ground(70, c.near(SAND))
    stripe = c.pick((225, 75, 75), (60, 120, 200), (40, 150, 130))
    for i in range(8):
        x = 18 + i * 8
        c.rect(x, 34, x + 8, 92, stripe if i % 2 else WHITE)
    c.poly([(12, 36), (50, 8), (88, 36)], c.near((245, 205, 90)), INK, 2)
    c.rect(33, 44, 67, 92, (70, 50, 55))
    curtain = c.pick((245, 160, 60), (180, 110, 190), (250, 215, 90))
    for i in range(4):
        c.poly(
            [(33 + i * 6, 44), (39 + i * 6, 44), (38 + i * 5, 90), (33 + i * 5, 90)],
            c.near(curtain, 16),
        )
    c.line([(31, 44), (69, 44)], INK, 2.5)


def bathtub(c: Canvas) -> None:
    c.tiles(c.pick((150, 215, 205), (165, 205, 230), (185, 220, 190)), (225, 242, 240), 14)
    c.ground(88, c.near((200, 195, 190)))
    c.line([(84, 58), (84, 12), (64, 12), (64, 20)], (130, 135, 145), 3.5)
    c.poly([(57, 20), (71, 20), (75, 26), (53, 26)], (130, 135, 145))
    for x in (58, 64, 70):
        c.line([(x, 30), (x - 2, 48)], (90, 165, 225), 1.8)
    for x, y, r in ((20, 52, 8), (32, 47, 9), (44, 51, 8), (56, 53, 7), (38, 55, 8)):
        c.oval(x, y, r, r, (252, 253, 255), (195, 215, 235), 1.5)
    for x in (24, 76):
        c.oval(x, 91, 5, 5, (190, 160, 80))
    c.poly([(6, 56), (94, 56), (86, 82), (74, 90), (26, 90), (14, 82)], WHITE, (150, 160, 170), 2)
    c.rect(2, 53, 98, 60, WHITE, (150, 160, 170), 2, radius=3)


def bedroom(c: Canvas) -> None:
    c.gradient(c.pick((215, 175, 195), (200, 180, 215), (225, 190, 180)), (205, 175, 190))
    c.ground(82, c.near((140, 95, 75)))
    c.rect(58, 8, 90, 38, (35, 45, 95), WHITE, 3)
    c.half(75, 22, 8, 8, (250, 235, 150), 0, 360)
    c.half(79, 20, 7, 7, (35, 45, 95), 0, 360)
    c.line([(64, 8), (64, 38)], WHITE, 1.5)
    c.rect(2, 34, 10, 94, c.near((110, 65, 40)), radius=2)
    c.rect(90, 54, 97, 94, c.near((110, 65, 40)), radius=2)
    c.rect(8, 66, 92, 84, WHITE)
    c.rect(12, 52, 36, 67, (255, 252, 240), (205, 195, 190), 2, radius=6)
    c.rect(34, 58, 93, 86, c.pick((125, 75, 170), (80, 85, 180), (170, 65, 130)), radius=5)
    c.rect(34, 58, 46, 86, (240, 225, 245), radius=4)


def shop_shelf(c: Canvas) -> None:
    c.gradient((250, 243, 225), (240, 228, 205))
    goods = (
        (230, 60, 60),
        (250, 190, 40),
        (60, 160, 90),
        (60, 120, 210),
        (240, 130, 50),
        (160, 80, 170),
    )
    for row in range(3):
        y = 30 + row * 32
        x = -36.0
        while x < 132:
            wide, high = c.rng.uniform(9, 12), c.rng.uniform(15, 22)
            color = c.pick(*goods)
            if (row + round(x)) % 3:
                c.rect(x, y - high, x + wide, y, color, INK, 1, radius=1)
                c.rect(x + 2, y - high * 0.7, x + wide - 2, y - high * 0.35, WHITE)
            else:
                c.rect(x + 1, y - high * 0.65, x + wide - 1, y, color, INK, 1, radius=2.5)
                c.rect(x + wide / 2 - 2, y - high, x + wide / 2 + 2, y - high * 0.6, color, INK, 1)
            x += wide + 2.5
        c.rect(-50, y, 150, y + 6, c.near((120, 125, 135)))
        for tag in range(-40, 140, 22):
            c.rect(tag, y + 1, tag + 9, y + 5, (255, 240, 120))


def museum_case(c: Canvas) -> None:
    c.gradient(c.pick((120, 30, 45), (100, 35, 65)), (80, 22, 38))
    c.ground(86, c.near((60, 45, 45)))
    c.poly([(10, -20), (90, -20), (76, 60), (24, 60)], (165, 75, 80))
    c.rect(22, 66, 78, 100, c.near((215, 205, 190)), INK, 2)
    c.rect(16, 62, 84, 68, c.near((235, 228, 215)), INK, 2)
    c.rect(24, 10, 76, 62, (190, 215, 225), (235, 245, 250), 3)
    vase = c.pick((225, 175, 50), (210, 150, 60), (235, 190, 90))
    c.poly(
        [
            (44, 20),
            (56, 20),
            (54, 28),
            (64, 38),
            (60, 52),
            (55, 60),
            (45, 60),
            (40, 52),
            (36, 38),
            (46, 28),
        ],
        vase,
        INK,
        1.8,
    )
    c.line([(37, 38), (63, 38)], (150, 60, 40), 3)
    c.line([(40, 50), (60, 50)], (150, 60, 40), 3)
    c.line([(30, 16), (30, 40)], WHITE, 2.5)
    for x in (0, 100):
        c.line([(x, 102), (x, 66)], (215, 175, 70), 4)
        c.oval(x, 64, 4, 4, (235, 200, 90))


def bank_safe(c: Canvas) -> None:
    c.gradient(c.near((70, 75, 95)), c.near((48, 52, 70)))
    c.rect(2, 2, 98, 98, c.near((100, 108, 125)), (40, 42, 55), 3, radius=5)
    c.oval(50, 50, 40, 40, c.near((165, 172, 185)), (50, 54, 66), 3.5)
    c.oval(50, 50, 30, 30, c.near((200, 205, 214)), (90, 95, 108), 2.5)
    for dx, dy in (
        (35, 0),
        (-35, 0),
        (0, 35),
        (0, -35),
        (25, 25),
        (-25, 25),
        (25, -25),
        (-25, -25),
    ):
        c.oval(50 + dx, 50 + dy, 3, 3, (70, 75, 88))
    turn = c.rng.choice(((20, 0, 10, 17), (18, 9, 0, 20)))
    for dx, dy in ((turn[0], turn[1]), (turn[2], turn[3]), (turn[2], -turn[3])):
        c.line([(50 - dx, 50 - dy), (50 + dx, 50 + dy)], c.near((215, 165, 60), 5), 4)
        c.oval(50 - dx, 50 - dy, 4, 4, (235, 190, 80))
        c.oval(50 + dx, 50 + dy, 4, 4, (235, 190, 80))
    c.oval(50, 50, 8, 8, (190, 140, 50), INK, 1.5)


def parliament(c: Canvas) -> None:
    c.sky()
    c.ground(88, c.near(GREEN))
    stone, shade = c.near(CREAM), (190, 175, 145)
    c.rect(0, 80, 100, 85, stone, shade, 1.2)
    c.rect(-6, 85, 106, 91, stone, shade, 1.2)
    c.rect(-12, 91, 112, 98, stone, shade, 1.2)
    c.rect(8, 44, 92, 80, (120, 105, 95))
    for i in range(6):
        x = 8 + i * 15.4
        c.rect(x, 44, x + 8, 80, stone, shade, 1.2)
    c.rect(2, 37, 98, 44, stone, shade, 1.5)
    c.poly([(0, 37), (100, 37), (50, 12)], stone, shade, 2)
    c.oval(50, 29, 6, 5, c.pick((90, 120, 180), (180, 80, 70), (200, 160, 70)))


def church(c: Canvas) -> None:
    c.sky()
    c.ground(84, c.near(GREEN))
    roof = c.pick((190, 60, 50), (165, 75, 45), (175, 50, 70))
    c.rect(46, 58, 98, 92, WHITE, (175, 175, 180), 1.5)
    c.poly([(42, 60), (52, 42), (94, 42), (102, 60)], roof, INK, 1.5)
    c.rect(12, 48, 48, 92, WHITE, (175, 175, 180), 1.5)
    c.poly([(8, 50), (52, 50), (30, 21)], roof, INK, 1.5)
    c.line([(30, 22), (30, 1)], INK, 3.5)
    c.line([(22.5, 8), (37.5, 8)], INK, 3.5)
    c.half(30, 79, 8, 9, (120, 75, 50))
    c.rect(22, 79, 38, 92, (120, 75, 50))
    c.oval(30, 60, 5, 5, c.pick((70, 130, 210), (240, 190, 60)), INK, 1.5)
    for x in (60, 73, 86):
        c.half(x, 71, 4, 5, (70, 110, 180))
        c.rect(x - 4, 71, x + 4, 82, (70, 110, 180))


def temple(c: Canvas) -> None:
    c.sky()
    c.ground(86, c.pick((200, 180, 140), (165, 185, 120)))
    wall, roof = c.near((185, 45, 40)), c.pick((40, 50, 60), (50, 70, 65), (60, 45, 60))
    c.rect(2, 84, 98, 92, STONE)
    for y, half in ((84, 34), (60, 26), (37, 18)):
        c.rect(50 - half, y - 16, 50 + half, y, wall)
        for dx in (-0.6, 0.0, 0.6):
            c.rect(50 + dx * half - 3, y - 12, 50 + dx * half + 3, y, (250, 205, 110))
        top = y - 16
        c.poly(
            [
                (50 - half - 16, top - 4),
                (50 - half - 8, top + 3),
                (50 + half + 8, top + 3),
                (50 + half + 16, top - 4),
                (50 + half - 4, top - 9),
                (50 - half + 4, top - 9),
            ],
            roof,
        )
    c.line([(50, 14), (50, 1)], (220, 170, 60), 3)
    c.oval(50, 5, 3, 3, (235, 190, 80))


def mosque(c: Canvas) -> None:
    c.sky(extras=False)
    c.ground(86, c.near(SAND))
    wall = c.near((240, 228, 200))
    dome = c.pick((40, 160, 160), (60, 140, 185), (45, 150, 120))
    for x in (4, 96):
        c.rect(x - 4.5, 20, x + 4.5, 92, wall, (190, 170, 130), 1.2)
        c.poly([(x - 6, 21), (x + 6, 21), (x, 4)], dome)
        c.rect(x - 6.5, 36, x + 6.5, 40, dome)
    c.rect(16, 58, 84, 92, wall, (190, 170, 130), 1.2)
    c.half(50, 58, 29, 34, dome)
    c.poly([(42, 27), (58, 27), (50, 16)], dome)
    c.line([(50, 18), (50, 12)], (225, 175, 50), 2.5)
    c.arc(51, 7, 5.5, 5.5, 40, 320, (240, 185, 40), 3)
    for x, high in ((28, 12), (50, 18), (72, 12)):
        c.half(x, 92 - high, 6, 8, (95, 80, 90))
        c.rect(x - 6, 92 - high, x + 6, 92, (95, 80, 90))


PLACES = {
    f.__name__: f
    for f in (
        railway_track,
        cliff_edge,
        frozen_lake,
        changing_cabin,
        bathtub,
        bedroom,
        shop_shelf,
        museum_case,
        bank_safe,
        parliament,
        church,
        temple,
        mosque,
    )
}
