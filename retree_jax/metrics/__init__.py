"""Measurements of generated eyes and predicted vessels: functions of arrays that know nothing of models or files.

segmentation: agreement of vessel maps. vessels: biomarkers of a tree and distances between sets of trees.
images: distances between sets of photographs. fidelity: whether a label lies on the vessels. privacy: whether
training images were copied. two_sample: whether two sets differ by more than chance. The others support these:
alignment, features, skeleton, topology, masks and intervals.
"""
