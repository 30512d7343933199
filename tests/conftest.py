import qohort  # before torch: it fixes MKL's arithmetic

import torch  # isort: skip

assert qohort.__version__
torch.set_num_threads(1)
