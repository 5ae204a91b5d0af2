"""How deploy/two_pods.py judges runs on two pods: directories as runs leave them, made up, good and not."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "two_pods.py")
STEPS = 40
AWAY = range(15, 19)  # steps that pod 1 did not make


def line(step, loss, hash, name="outer_hash"):
    """Of metrics.jsonl; a hash every ten steps."""
    made = {"step": step, "loss": loss, "step_s": 0.1,
            "pods": {"bytes_sent": 1000, "wait_s": 0.01, "staleness": 0}}
    if step % 10 == 0:
        made["param_hash"] = hash if name == "param_hash" else f"of its own {step}"
        if name == "outer_hash":
            made["pods"]["outer_hash"] = hash
    return made


class TwoPods(unittest.TestCase):
    def judge(self, change=lambda pods: None, loss=2.0, name="outer_hash"):
        """The exit code and the text of the comparison with a synchronous run of loss 2; `change` gets the late run's
        lines, by pod."""
        base = [[line(step, 2.0, f"s{step}", "param_hash") for step in range(1, STEPS + 1)] for _ in range(2)]
        late = [[line(step, loss, f"h{step}", name) for step in range(1, STEPS + 1) if pod == 0 or step not in AWAY]
                for pod in range(2)]
        change(late)
        with tempfile.TemporaryDirectory() as top:
            for run, pods in (("synchronous", base), ("late", late)):
                for pod, lines in enumerate(pods):
                    os.makedirs(f"{top}/{run}/pod-{pod}")
                    with open(f"{top}/{run}/pod-{pod}/metrics.jsonl", "w") as file:
                        file.writelines(json.dumps(each) + "\n" for each in lines)
            done = subprocess.run([sys.executable, SCRIPT, "compare", f"{top}/synchronous", f"{top}/late", str(STEPS)],
                                  capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def test_a_good_run(self):
        code, text = self.judge()
        self.assertEqual(code, 0, text)
        for said in ("away: 4 of 40", "pod 0: hash of the outer parameters after step 40: h40",
                     "pod 1: hash of the outer parameters after step 40: h40", "sent by both pods: 76,000",
                     "bf16: 80,000", "+0.00%"):
            self.assertIn(said, text)

    def test_hashes_that_differ(self):
        def other(pods):
            pods[1][-1]["pods"]["outer_hash"] = "another"
        code, text = self.judge(other)
        self.assertEqual(code, 1, text)
        self.assertIn("pod 1: hash of the outer parameters after step 40: another", text)

    def test_the_newest_step_that_both_have_a_hash_of_counts(self):
        def none(pods):
            del pods[1][-1]["pods"]["outer_hash"], pods[1][-1]["param_hash"]
        code, text = self.judge(none)
        self.assertEqual(code, 0, text)
        self.assertIn("after step 30: h30", text)

    def test_no_hash_in_common(self):
        def none(pods):
            for each in pods[1]:
                each["pods"].pop("outer_hash", None)
                each.pop("param_hash", None)
        code, text = self.judge(none)
        self.assertEqual(code, 1, text)
        self.assertIn("no step of which both pods have told the hash", text)
        self.assertIn("synchronous: 2.0000", text)  # the rest is told all the same

        def nothing(pods):
            pods[1].clear()
        code, text = self.judge(nothing)
        self.assertEqual(code, 1, text)
        self.assertIn("pod-1/metrics.jsonl has no step", text)

    def test_with_gradients_the_parameters_are_alike(self):
        code, text = self.judge(name="param_hash")
        self.assertEqual(code, 0, text)
        self.assertIn("hash of the parameters after step 40: h40", text)

        def other(pods):
            pods[0][-1]["param_hash"] = "another"
        self.assertEqual(self.judge(other, name="param_hash")[0], 1)

    def test_the_loss(self):
        for loss, expected in ((2.0 * 1.011, 1), (2.0 * 1.009, 0), (1.0, 0)):
            code, text = self.judge(loss=loss)
            self.assertEqual(code, expected, text)

    def test_the_loss_of_the_last_steps_counts(self):
        def worse_at_first(pods):
            for each in pods[0][:20]:
                each["loss"] = 9.0
        self.assertEqual(self.judge(worse_at_first)[0], 0)

        def worse_at_last(pods):
            pods[0][-1]["loss"] = 9.0
        self.assertEqual(self.judge(worse_at_last)[0], 1)

    def test_steps(self):
        def missing(pods):  # on the pod that was there all the time
            del pods[0][5]

        def twice(pods):
            pods[0].insert(5, pods[0][5])

        def unfinished(pods):
            del pods[1][-1]

        def nobody_away(pods):
            pods[1][:] = pods[0]
        for change in (missing, twice, unfinished, nobody_away):
            with self.subTest(change.__name__):
                code, text = self.judge(change)
                self.assertEqual(code, 1, text)


if __name__ == "__main__":
    unittest.main()
