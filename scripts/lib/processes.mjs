import { readFile, readdir } from 'node:fs/promises';

/**
 * Ids of the live processes that carry `marker` in the environment that they were started with, or whose session is one
 * of `sessions`. Linux only; elsewhere it finds none. (PostgreSQL overwrites its environment, hence the sessions.)
 */
export async function findProcesses(marker, sessions) {
  const ids = (await readdir('/proc').catch(() => [])).filter((name) => /^\d+$/.test(name)).map(Number);
  const found = await Promise.all(
    ids.map(async (pid) => {
      if (pid === process.pid) return undefined;
      const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
      // The command's name is in parentheses and may hold anything; what follows the last one is fixed: state ppid pgrp session.
      const [state, , , session] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      if (stat === '' || state === 'Z') return undefined;
      const environment = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '');
      if (!environment.split('\0').includes(marker) && !sessions.has(Number(session))) return undefined;
      const command = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).replaceAll('\0', ' ').trim();
      return { pid, command };
    }),
  );
  return found.filter((entry) => entry !== undefined);
}

/** Ends the given processes: asked first, made to after two seconds. */
export async function endProcesses(list, find) {
  for (const signal of ['SIGTERM', 'SIGKILL']) {
    for (const { pid } of list) {
      try {
        process.kill(pid, signal);
      } catch {
        // It is gone already.
      }
    }
    for (let tries = 0; tries < 20; tries++) {
      if ((await find()).length === 0) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
