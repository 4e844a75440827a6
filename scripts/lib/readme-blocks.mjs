/** The fenced `sh` blocks of a Markdown text whose info string says `ci`, in order. */
export function readmeBlocks(markdown) {
  const blocks = [];
  let open;
  markdown.split('\n').forEach((line, index) => {
    if (open === undefined) {
      const fence = /^(\s*)(`{3,})(\S*)\s*(.*)$/.exec(line);
      if (fence === null) return;
      const [, indent, ticks, language, info] = fence;
      const ready = /\bready="([^"]+)"/.exec(info)?.[1];
      const words = info
        .replace(/\w+="[^"]*"/g, '')
        .trim()
        .split(/\s+/);
      open = {
        indent: indent.length,
        ticks,
        wanted: language === 'sh' && words.includes('ci'),
        block: { line: index + 1, code: '', background: words.includes('background'), ready },
      };
      if (open.wanted && open.block.background !== (ready !== undefined)) {
        throw new Error(
          `line ${index + 1}: a background block says what it prints when it is ready: background ready="…"`,
        );
      }
    } else if (line.trim().startsWith(open.ticks) && line.trim().replace(/`/g, '') === '') {
      if (open.wanted) blocks.push(open.block);
      open = undefined;
    } else {
      open.block.code += `${line.slice(Math.min(open.indent, line.length - line.trimStart().length))}\n`;
    }
  });
  return blocks;
}
