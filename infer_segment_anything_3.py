"""Entry point of the plugin: gives Ikomia the factories of the algorithm and of its settings panel."""

from ikomia import dataprocess


class IkomiaPlugin(dataprocess.CPluginProcessInterface):
    """What Ikomia looks for when it loads the plugin; it requires this class name."""

    def __init__(self) -> None:
        dataprocess.CPluginProcessInterface.__init__(self)

    def get_process_factory(self) -> dataprocess.CTaskFactory:
        """Return the factory of the algorithm."""
        from infer_segment_anything_3.infer_segment_anything_3_process import InferSegmentAnything3Factory

        return InferSegmentAnything3Factory()

    def get_widget_factory(self) -> dataprocess.CWidgetFactory:
        """Return the factory of the settings panel; only Ikomia Studio, which has Qt, calls this."""
        from infer_segment_anything_3.infer_segment_anything_3_widget import InferSegmentAnything3WidgetFactory

        return InferSegmentAnything3WidgetFactory()

    def get_param_factory(self) -> dataprocess.CTaskParamFactory:
        """Return the factory of the parameters."""
        from infer_segment_anything_3.infer_segment_anything_3_process import InferSegmentAnything3ParamFactory

        return InferSegmentAnything3ParamFactory()
