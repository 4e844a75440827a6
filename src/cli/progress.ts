const width = 30;
const leastPause = 80;

/** A bar on stderr while a person looks, nothing in a pipe: stdout holds only the answer. */
export function progressBar(what: string) {
  const { stderr } = process;
  const shown = stderr.isTTY === true;
  let last = 0;
  let drawn = false;
  return {
    show: (done: number, total: number): void => {
      const now = performance.now();
      if (!shown || now - last < leastPause) return;
      last = now;
      drawn = true;
      const share = total === 0 ? 0 : Math.min(1, done / total);
      const full = Math.round(share * width);
      const bar = '#'.repeat(full) + '-'.repeat(width - full);
      stderr.write(`\r[${bar}] ${done.toLocaleString('en')} of ${total.toLocaleString('en')} ${what}`);
    },
    end: (): void => {
      if (drawn) stderr.write('\r\u001b[2K');
    },
  };
}
