"""What generated eyes and predicted vessels are worth: numbers about arrays, which know nothing of models.

segmentation: agreement of vessel maps. vessels: biomarkers of a tree and distances between sets of trees.
images: distances between sets of photographs. privacy: whether training images were copied. skeleton,
topology, masks and intervals serve them.
"""
