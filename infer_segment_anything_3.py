"""Front door of the plugin: hands Ikomia the factories of the algorithm and of its settings panel."""

from ikomia import dataprocess


class IkomiaPlugin(dataprocess.CPluginProcessInterface):
    """What Ikomia looks for when it loads the plugin. The class must bear this name."""

    def __init__(self):
        dataprocess.CPluginProcessInterface.__init__(self)

    def get_process_factory(self):
        """Factory of the algorithm."""
        from infer_segment_anything_3.infer_segment_anything_3_process import InferSegmentAnything3Factory

        return InferSegmentAnything3Factory()

    def get_widget_factory(self):
        """Factory of the settings panel; asked for by Ikomia Studio alone, since only there is a Qt to show it."""
        from infer_segment_anything_3.infer_segment_anything_3_widget import InferSegmentAnything3WidgetFactory

        return InferSegmentAnything3WidgetFactory()

    def get_param_factory(self):
        """Factory of the parameters."""
        from infer_segment_anything_3.infer_segment_anything_3_process import InferSegmentAnything3ParamFactory

        return InferSegmentAnything3ParamFactory()
