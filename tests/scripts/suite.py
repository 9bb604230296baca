"""What a dynamically linked program of some size does: run by Debian's i386 python3 in the guest and natively."""
import collections
import hashlib
import itertools
import math
import random
import re
import string
import struct
import sys
import threading

scale = int(sys.argv[1])


def primes(limit):
    sieve = bytearray([1]) * limit
    for n in range(2, int(limit ** 0.5) + 1):
        if sieve[n]:
            sieve[n * n::n] = bytes(len(range(n * n, limit, n)))
    return [n for n in range(2, limit) if sieve[n]]


def words(count):
    source = random.Random(7)
    return ["".join(source.choice(string.ascii_lowercase) for _ in range(source.randint(2, 9))) for _ in range(count)]


class Tree:
    def __init__(self):
        self.left = self.right = self.key = None

    def insert(self, key):
        if self.key is None:
            self.key, self.left, self.right = key, Tree(), Tree()
        elif key != self.key:
            (self.left if key < self.key else self.right).insert(key)

    def __iter__(self):
        if self.key is not None:
            yield from self.left
            yield self.key
            yield from self.right


def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()


text = words(500 * scale)
found = primes(5000 * scale)
print("primes", len(found), digest(found))
print("big", digest(math.factorial(100 + 50 * scale)), digest(3 ** (1000 * scale) % 10 ** 60))
print("counter", digest(sorted(collections.Counter("".join(text)).items())))
print("regex", len(re.findall(r"([aeiou])[^aeiou]+\1", " ".join(text))))
tree = Tree()
for word in text:
    tree.insert(word)
print("tree", digest(list(tree)))
print("floats", digest([math.sqrt(i) * math.sin(i) for i in range(200 * scale)]), sum(1 / i for i in range(1, 1000)))
print("struct", digest(b"".join(struct.pack("<dfqH", i / 3, i / 7, -i, i) for i in range(500))))
print("permutations", sum(1 for p in itertools.permutations(range(6)) if p[0] < p[-1]))
total, lock = [0], threading.Lock()


def add():
    for _ in range(50 * scale):
        with lock:
            total[0] += 1


threads = [threading.Thread(target=add) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("threads", total[0])
try:
    [][1]
except IndexError as error:
    print("exception", error)
