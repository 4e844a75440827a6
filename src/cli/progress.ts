const width = 30;
const leastPause = 80;

/** A line on stderr that is written over, for work of unknown length; nothing in a pipe. */
export function counter() {
  const { stderr } = process;
  let last = 0;
  let drawn = false;
  return {
    show: (text: string): void => {
      const now = performance.now();
      if (stderr.isTTY !== true || now - last < leastPause) return;
      last = now;
      drawn = true;
      stderr.write(`\r\u001b[2K${text}`);
    },
    end: (): void => {
      if (drawn) stderr.write('\r\u001b[2K');
      drawn = false;
    },
  };
}

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
