/** Waits for SIGTERM or SIGINT, then stops in order. A second signal is someone who cannot wait. */
export async function runUntilSignal(stop: () => Promise<void>): Promise<void> {
  const signal = await new Promise<NodeJS.Signals>((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, resolve);
  });
  process.stderr.write(`leasehold: ${signal} received, stopping\n`);
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => process.exit(130));
  await stop();
  // A connection to a target that hangs would keep the process for as long as its time-outs.
  setTimeout(() => process.exit(), 250).unref();
}
