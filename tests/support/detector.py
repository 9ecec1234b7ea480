"""A task that detects whatever it is told to."""

from ikomia import core, dataprocess


class Detector(dataprocess.CObjectDetectionTask):
    """A detector.

    Attributes:
        boxes: what it finds, ``[[x1, y1, x2, y2], ...]``.
        labels: one per box; all are "object" if empty.
    """

    def __init__(self):
        dataprocess.CObjectDetectionTask.__init__(self, "detector")
        self.set_param_object(core.CWorkflowTaskParam())
        self.boxes = []
        self.labels = []

    def get_progress_steps(self):
        return 1

    def run(self):
        self.begin_task_run()
        labels = self.labels or ["object"] * len(self.boxes)
        self.set_names(list(dict.fromkeys(labels)))
        for number, (label, (left, top, right, bottom)) in enumerate(zip(labels, self.boxes, strict=True)):
            box = map(float, (left, top, right - left, bottom - top))
            self.add_object(number, self.get_names().index(label), 0.9, *box)
        self.forward_input_image(0, 0)
        self.end_task_run()
