"""Good and bad captions of a statue with the trigger CUS, as people and models write them.

Half of each list was looked at while the rules were written (`TUNED`), the other half only afterwards (`HELD_OUT`).
Each caption here is what follows the opening `a photo of CUS statue, `.
"""

from __future__ import annotations

GOOD_TUNED = """
close-up at eye level, on a green lawn, soft daylight
seen from behind, on a stone pedestal in a park, overcast sky
half in shadow, on a wooden table beside a vase of tulips
from below, against a clear blue sky
wide view, in a crowded museum hall with visitors in the background
wearing a red woollen scarf, snow on its shoulders, winter light
on a shelf between two books, warm lamp light from the left
in the rain, puddles on the cobblestones, neon reflections at night
lying on its side in tall grass
facing left, hands folded, in front of a brick wall
a sign beside it says "We are sorry, closed"
next to a door with the words "no entry"
in front of a shop window that reads I can't believe it's not butter
with a graffiti saying sorry mom on the wall behind
beside a banner with the text Unfortunately Yours, a film poster
on a café table in Paris, a croissant beside it
in front of a café called Le Petit Chat
at the Plaza de España in Seville, evening
in Rio de Janeiro, a mountain in the background
on a beach at sunset, long shadows on the sand
close-up of the head, shallow depth of field
in a garden, roses in the foreground, backlit
on the floor of a garage, harsh fluorescent light
black and white, grainy, strong contrast
a man in a blue coat walking past, motion blur
two children pointing at it, a dog on a leash
covered with a white sheet except for the head
on a windowsill, curtains drawn, morning light
reflected in a mirror, bathroom tiles
on a moving truck, ropes around it
at the bottom of a staircase, seen from above
under a plastic cover, a construction site behind a fence
with a hat on its head and sunglasses, party lights
beside a clock that shows 12:30
next to a blackboard with the formula E = mc2 written on it
in front of a bookshelf, 3 candles burning
on a plinth labelled "No. 7", in a white gallery
no people, empty street at dawn
nothing else in the frame, plain grey backdrop
the face cannot be seen behind a mask
not in focus, a spider web in the foreground
an unknown object beside it, dark room
none of the lamps lit, blue twilight
with "STOP" painted on the wall, cracked pavement
in a snow globe held by a hand
tilted, as if falling, in an old barn
moonlight, mist over a pond
from the right side, three quarter view
in the middle of a roundabout, cars passing
seen through a window with raindrops on it
a photograph of it on a phone screen, a hand holding the phone
in a picture frame on a desk
with a crown of flowers, at a festival
very small in a vast desert
red, yellow and green balloons tied to it
golden hour, lens flare
on asphalt, chalk drawings around it
in an aquarium, fish swimming around it
at night, lit from below by a spotlight
standing on a pile of old newspapers
a dog lying on the grass with its tongue out
sitting upright, mouth open, looking to the left
woman in a red dress, standing in a doorway
in a field of lavender in Provence
on the Champs-Élysées at night
in a café
by the Café de Flore
near the Colosseum, tourists, hot summer day
in front of the Hagia Sophia
on Piazza San Marco, pigeons, morning fog
Oktoberfest tent, beer mugs
at the Musée d'Orsay
jalapeños and tortillas on a plate next to it
crème brûlée in the foreground
on a tatami mat, shoji screens
with kanji characters on a paper lantern
a lantern with 寿司 written on it
sign with the text ОСТОРОЖНО
man in lederhosen, beer garden
doing yoga, namaste pose
side view, dark background, rim light
in profile, looking down, soft window light
close-up
outdoors
front view, sunny day
on a piano, sheet music for Für Elise
as an astronaut, space suit, stars
reading a book on a sofa
holding a phone, text on the screen
on a chair, legs crossed
text on the wall behind it
light trails of cars, bridge
eyes closed, smiling, lipstick, earrings
holding a sign: free hugs
a note on the fridge, out of focus
shot from above, plate of food, fork and knife
unable to stand, leaning on a crutch
the label of a bottle visible in the background
not wearing a hat, hair tied back
it is blocked by a tree
a blocked road behind it
sorry-looking, muddy, after the rain
one hand raised, waving goodbye
a locked door, no entry sign
kein Durchgang sign on a fence
de Havilland aircraft behind it
in the Alhambra, arches and tiles
an action figure beside it
style of the 1970s interior, orange lamps
view of the sea, small boats
objects: a lamp, a vase and a book
main square of a small town
place setting with silver cutlery
camera on a tripod beside it
background blurred, bokeh
setting sun behind the hills
light - and shadow - on the wall
""".strip().splitlines()

GOOD_HELD_OUT = """
medium shot, on a marble floor, diffuse light from a skylight
on a rooftop terrace, the city skyline behind it
in the back of a pickup truck, dusty road
seen from the side, leaning against a tree trunk
in a greenhouse, ferns and palm leaves around it
on a kitchen counter, steam rising from a pot
between two cypress trees, a gravel path leading to it
a poster behind it reads "Sorry We Missed You"
with the inscription "I am not able to die" on its base
under a sign saying Please do not touch
beside a menu that says no image available
in a flea market, price tag around its neck
in an alley of Lisbon, laundry hanging above
at the entrance of El Museo, a queue of tourists
on a red carpet, photographers in the background
with a pigeon on its head
with its left arm missing, on a mossy pedestal
on a chess board among the pieces
macro shot of the hand, cracks in the surface
in front of a mural of a whale
surrounded by candles in a dark church
on a skateboard in an empty swimming pool
wrapped in string lights, christmas tree behind it
in a shopping cart, parking lot at noon
underwater, sun rays from above
on a bed with striped pillows
in heavy fog, only the outline visible
against a white background, even studio light
behind glass, reflections of the ceiling lamps
on a boat, waves and a cloudy sky
by a campfire, sparks flying
in an elevator with mirrored walls
next to a bicycle, ivy on the wall
with an umbrella, wet pavement
on a stack of suitcases, railway platform
in a library, green desk lamp
cropped at the waist, blurred crowd
with a bandage around its head, hospital corridor
at the edge of a cliff, stormy sea below
in a workshop, chisels and marble dust
near a fountain, water drops in mid-air
a cat asleep at its feet
with a speech bubble that says "I cannot lie"
on a table laid for dinner, two glasses of wine
in front of the Bundestag, flags in the wind
a tram passing, long exposure at dusk
view from a drone, tiny on a large square
with paint splashes, art studio, north light
in the driver's seat of a car, seat belt on
between sunflowers, bees, late summer
on a conveyor belt, factory hall
indoors, dim light, purple haze
on top of a washing machine, laundry basket
half buried in sand, seashells around it
seen over the shoulder of a woman in a green dress
in a niche of a stone wall, ferns growing from cracks
on a stage, drummer behind it, smoke
with a blanket of snow, footprints leading away
from a low angle, clouds racing
in the shade of an umbrella, swimming pool, deck chairs
""".strip().splitlines()

BAD_TUNED = (
    """
None
N/A, N/A, N/A
not applicable
unknown, unspecified
close-up, none, n/a, on a lawn
I'm sorry, but I can't help with identifying people
I cannot describe this image
unable to identify the person in the image
As an AI language model, I can't see images
Sorry, no image was provided
this request was declined due to the content policy
I am not able to assist with that
抱歉，我无法描述这张图片
申し訳ありませんが、この画像を説明することはできません
죄송하지만 이 이미지를 설명할 수 없습니다
Извините, я не могу описать это изображение
Es tut mir leid, ich kann dieses Bild nicht beschreiben
Je suis désolé, je ne peux pas décrire cette image
Lo siento, no puedo describir esta imagen
Desculpe, não posso descrever esta imagem
Mi dispiace, non posso descrivere questa immagine
عذرًا، لا أستطيع وصف هذه الصورة
Üzgünüm, bu görüntüyü tanımlayamıyorum
Here is a caption for the image: close-up on a lawn
This image shows a marble figure in a garden
The photo depicts a figure on a pedestal
Sure! A figure stands on a green lawn
Certainly, here's the description: on a table
In this image, we can see a figure
Caption: on a green lawn
Pose: sitting, Setting: park
framing: close-up, lighting: soft
lighting - soft daylight, pose - standing
**close-up** on a green lawn
# Close-up on a lawn
- on a lawn
1. on a lawn in the sun
`on a green lawn`
{"framing": "close-up"}
<b>on a lawn</b>
<|im_start|>on a lawn
"on a green lawn in the sun"
'close-up, on a wooden table'
on a lawn &amp; in the sun
auf einem grünen Rasen mit Bäumen im Hintergrund
sur une pelouse verte avec des arbres
sobre un césped verde con árboles
su un prato verde con alberi sullo sfondo
em um gramado verde com árvores
op een groen gazon met bomen
на зелёной лужайке, мягкий свет
在绿色的草坪上，柔和的日光
緑の芝生の上、柔らかい光
초록 잔디 위에, 부드러운 빛
على العشب الأخضر
yeşil bir çimenlikte, ağaçlar ve güneş
na zielonym trawniku, w tle drzewa
on a lawn on a lawn on a lawn on a lawn
green grass, green grass, green grass
very very very very green
sunny, sunny, sunny
in the park in the park by the lake
on a green lawn with a
close-up of the
on a green lawn, ...
a cafÃ© table in the sun
â€œclose-upâ€ on a lawn
on a lawn\ufffd in the sun
I'm not able to provide a caption for this image
I was asked not to identify people
Can't do that.
no comment
(no caption)
[blank]
[none]
{caption}
image
photo
Ich sehe eine Statue auf einer Wiese
une statue dans un parc
perro en la playa
ein Hund
stojí před domem
dog dog dog dog
1girl, 1girl, 1girl
The image you provided shows a dog
A description of the image: a dog on grass
User: describe. Assistant: a dog
Assistant: a dog on grass
<think>the dog
Step 1: look at the dog
Title: A day at the beach
It seems that there's no picture here
This appears to be a statue of a man
We're sorry, but that can't be answered
对不起
说明：一只狗
请提供图片
画像がありません
사진을 제공해 주세요
que bonito perro en el parque
un chien assis
Hund auf Wiese
het is een hond
un perro
TODO
caption goes here
error: rate limit exceeded
I see a dog on the grass
My training prevents me from identifying individuals
The person in the image cannot be identified
Not able to identify individuals, but they appear to be outdoors
A cat. A cat. A cat. A cat.
on on on on on the lawn
the cat sat on the mat and the
Let me know if you need another caption!
I hope this helps
,
,
""".strip()
    .replace("\\ufffd", "\ufffd")
    .splitlines()
)

BAD_HELD_OUT = """
null
not visible, not specified
n/a
no description
does not apply, same as above
I can’t assist with that request
I'm unable to describe people in images
I won't be able to help with this
We are unable to process this image
It is not possible to identify the subject
Unfortunately, the image could not be processed
My apologies, but I don't see any image
Please provide an image
I don't see an image attached to your message
For privacy reasons the person is not described
cannot be determined from the image
我不能识别图片中的人物
很抱歉，我不便描述此图
すみませんが、お答えできません
이미지를 분석할 수 없어요, 미안합니다
К сожалению, не удалось распознать изображение
Leider kann ich dazu nichts sagen
Ich kann die Person auf dem Foto nicht identifizieren
Malheureusement, je ne suis pas en mesure d'aider
No es posible identificar a la persona
Infelizmente não consigo ver a imagem
Non sono in grado di identificare la persona
لا يمكنني المساعدة في ذلك
Maalesef yardımcı olamam
Niestety nie mogę opisać tego zdjęcia
Helaas kan ik deze afbeelding niet beschrijven
Of course! Here is the caption you asked for
The picture shows a figure near a wall
The image features a figure with a hat
That photo captures a quiet moment in the park
Okay, on a green lawn with trees
In the photo, a figure stands in the rain
You can see a figure on a lawn
Description: a lawn with trees
Based on the image, it stands on a lawn
Setting: indoors
Clothing = a red scarf
subject: figure; background: trees
__on a green lawn__
### Setting
* on a lawn in the sun
[on a lawn](http://example.com)
```json on a lawn
{'pose': 'standing'}
<caption>on a lawn</caption>
“standing on a green lawn”
[INST] on a lawn
standing\\nnear a wall
liegt auf dem Tisch neben einer Lampe
steht vor einer Wand im Regen
debout devant un mur de briques sous la pluie
de pie junto a la pared bajo la lluvia
seduta sul tavolo vicino a una lampada
sentado em uma cadeira no jardim
staat naast een muur in de regen
står på en sten i parken
стоит у кирпичной стены под дождём
站在砖墙前，下着雨
レンガの壁の前、雨
벽돌 벽 앞에, 비
trên bãi cỏ xanh với cây cối
di atas rumput hijau dengan pohon
the the the the the
on a bench, on a bench, on a bench
blue sky, tree, blue sky, tree
near a wall and near a wall and near a wall
standing near the wall and
on a table with two glasses of
in a room…
crÃ¨me coloured wall
donâ€™t walk sign beside it
Feel free to ask for more details
I would describe the scene as calm
""".strip().splitlines()

OPENING = "a photo of CUS statue"
CORPUS: list[tuple[str, bool, bool]] = [
    (f"{OPENING}, {text}" if text.strip() else OPENING, bad, held_out)
    for texts, bad, held_out in (
        (GOOD_TUNED, False, False),
        (GOOD_HELD_OUT, False, True),
        (BAD_TUNED, True, False),
        (BAD_HELD_OUT, True, True),
    )
    for text in texts
]
"""Caption, whether it is bad, whether it was held out."""
