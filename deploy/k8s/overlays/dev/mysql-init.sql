-- Each service makes its own database when it migrates.
GRANT ALL PRIVILEGES ON `aemos\_%`.* TO 'aemos'@'%';
