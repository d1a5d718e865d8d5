"""What several annotation formats share: class names, id masks, outlines, copies of photos, checks of entries."""
